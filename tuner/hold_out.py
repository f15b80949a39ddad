"""Whether what trials teach carries over: learned again without a group, and tried on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import get_args

from registry.base import FrozenDict
from registry.errors import InvalidInput
from registry.inventory import ModelInventory
from registry.record import Estimate
from tuner.corrections import Corrections, learn
from tuner.cost_model import CostModel
from tuner.model_error import AXES, Axis, Case, Spreads, spreads


@dataclass(frozen=True)
class HeldOut:
    """Errors on the cases of one group. `frozen` are those made at the time; `roofline` of
    predictions made now, from nothing learned; `refitted` of predictions corrected by what the
    `taught_by` other cases of the same device teach. `unknown` cases could not be predicted again:
    the inventory of their model is not in the registry."""

    axis: Axis
    value: str
    count: int
    unknown: int
    taught_by: int
    frozen: Spreads
    roofline: Spreads
    refitted: Spreads


def parse_group(text: str) -> tuple[Axis, str]:
    """ "resolution=1024x1024" as axis and value. Raises InvalidInput."""
    axis, equals, value = text.partition("=")
    known: tuple[Axis, ...] = get_args(Axis)
    for name in known:
        if name == axis and equals and value:
            return name, value
    raise InvalidInput(
        f"{text!r} is not a group of trials",
        hint=f"Write AXIS=VALUE, such as resolution=1024x1024; axes: {', '.join(known)}.",
    )


def held_out(
    cases: Sequence[Case], inventories: Mapping[str, ModelInventory], axis: Axis, value: str
) -> HeldOut:
    """Raises InvalidInput for a group that has no case, naming those that have."""
    inside = [case for case in cases if AXES[axis](case) == value]
    if not inside:
        there = ", ".join(sorted({AXES[axis](case) for case in cases})) or "none at all"
        raise InvalidInput(f"no trial has {axis}={value}", hint=f"There are: {there}.")
    known = [case for case in inside if case.model_key in inventories]
    teacher = _Teacher([case for case in cases if AXES[axis](case) != value], inventories)
    return HeldOut(
        axis=axis,
        value=value,
        count=len(inside),
        unknown=len(inside) - len(known),
        taught_by=len({other.trial for case in known for other in teacher.teaching(case)}),
        frozen=spreads(inside),
        roofline=spreads(known, teacher.roofline),
        refitted=spreads(known, teacher.refitted),
    )


class _Teacher:
    """Predicts again, with and without what some cases teach."""

    def __init__(self, cases: Sequence[Case], inventories: Mapping[str, ModelInventory]) -> None:
        self._inventories = inventories
        # A denoiser trial's peak is of no whole request: it would teach too small ones.
        self._cases = [case for case in cases if case.whole and case.model_key in inventories]
        self._learned: dict[tuple[str, str], Corrections] = {}

    def roofline(self, case: Case) -> Estimate:
        return self._estimate(case, Corrections())

    def refitted(self, case: Case) -> Estimate:
        key = (case.model_key, case.environment.hardware.digest)
        if key not in self._learned:
            self._learned[key] = self._learn(self.teaching(case))
        return self._estimate(case, self._learned[key])

    def teaching(self, case: Case) -> list[Case]:
        """Of the same device: the same model's, or without any the other models'."""
        hardware = case.environment.hardware
        near = [other for other in self._cases if other.environment.hardware == hardware]
        return [other for other in near if other.model_key == case.model_key] or near

    def _learn(self, cases: Iterable[Case]) -> Corrections:
        by_model: dict[str, list[Case]] = {}
        for case in cases:
            by_model.setdefault(case.model_key, []).append(case)
        return merged(
            learn(
                [(case.plan, self.roofline(case), case.measurement) for case in found],
                self._inventories[key],
            )
            for key, found in by_model.items()
        )

    def _estimate(self, case: Case, corrections: Corrections) -> Estimate:
        model = CostModel(
            self._inventories[case.model_key],
            case.environment.hardware,
            corrections,
            cpu_isa=case.environment.runtime.cpu_isa,
        )
        return model.estimate(case.plan, case.workload)


def merged(learned: Iterable[Corrections]) -> Corrections:
    """What several models teach together: of each factor the geometric mean, by how many trials
    it rests on. One alone is unchanged."""
    parts = [item for item in learned if item.trials]
    if len(parts) < 2:
        return parts[0] if parts else Corrections()
    outside = [item.outside_bytes for item in parts if item.outside_bytes is not None]
    return Corrections(
        step_all=_mean([(item.step_all, item.trials) for item in parts]),
        step=_mean_each([(item.step, item.trials) for item in parts]),
        fixed=_mean([(item.fixed, item.trials) for item in parts]),
        peak=_mean_each([(item.peak, item.trials) for item in parts]),
        outside_bytes=round(median(outside)) if outside else None,
        trials=sum(item.trials for item in parts),
    )


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in weighted)
    return exp(sum(log(value) * weight for value, weight in weighted) / total)


def _mean_each(parts: Sequence[tuple[Mapping[str, float], int]]) -> FrozenDict[float]:
    """By name, among those that have it."""
    names = {name for factors, _ in parts for name in factors}
    return FrozenDict(
        {name: _mean([(f[name], weight) for f, weight in parts if name in f]) for name in names}
    )
