"""How far predictions were off: what was frozen before each trial against what it measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Literal, get_args

from registry.environment import Environment
from registry.plan import Plan
from registry.record import Estimate, Measurement
from registry.workload import Workload

Metric = Literal["peak", "latency", "step"]
METRICS: tuple[Metric, ...] = get_args(Metric)
TOLERANCE: Mapping[Metric, float] = {"peak": 0.05, "latency": 0.08, "step": 0.08}
"""A prediction this close to what was measured, either way, counts as right."""


@dataclass(frozen=True)
class Case:
    """One plan that a study tried, by its most complete trial. `trial` is the study's id and the
    trial's number in it, from 1. `whole` where whole requests ran: only they show the peak, and
    their time. `default_steps` where requests had the number of steps that estimates are for.
    """

    trial: str
    family: str
    model: str
    model_key: str
    environment: Environment
    workload: Workload
    plan: Plan
    placement: str
    estimate: Estimate
    measurement: Measurement
    default_steps: bool

    @property
    def whole(self) -> bool:
        return self.measurement.latency_s is not None

    def error(self, metric: Metric, estimate: Estimate | None = None) -> float | None:
        """Predicted over measured, less 1: 0.1 is 10% too much. None where it cannot be said."""
        guess, measured = estimate or self.estimate, self.measurement
        if metric == "step":
            return _ratio(guess.step_ms, measured.step_ms)
        if not self.whole:
            return None
        if metric == "peak":
            return _ratio(guess.peak_vram_bytes, measured.memory.peak_vram_bytes)
        return _ratio(guess.latency_s, measured.latency_s) if self.default_steps else None


Axis = Literal["family", "model", "device", "resolution", "batch", "placement", "source"]
AXES: Mapping[Axis, Callable[[Case], str]] = {
    "family": lambda case: case.family,
    "model": lambda case: case.model,
    "device": lambda case: case.environment.hardware.name,
    "resolution": lambda case: _joined(f"{s.width}x{s.height}" for s in case.workload.shapes),
    "batch": lambda case: _joined(str(s.batch_size) for s in case.workload.shapes),
    "placement": lambda case: case.placement,
    "source": lambda case: case.estimate.source,
}
"""What cases are grouped by. A workload of several shapes is a group of its own."""


@dataclass(frozen=True)
class Spread:
    """Errors of one metric. `median` and `p95` are of their sizes, `bias` is the median of the
    signed ones; `within` is the share that is no larger than the metric's tolerance."""

    count: int
    within: float
    median: float
    p95: float
    bias: float


Spreads = Mapping[Metric, Spread]


def spread(metric: Metric, errors: Sequence[float]) -> Spread:
    """Of at least one error."""
    sizes = sorted(abs(error) for error in errors)
    return Spread(
        count=len(sizes),
        within=sum(size <= TOLERANCE[metric] for size in sizes) / len(sizes),
        median=median(sizes),
        p95=sizes[ceil(0.95 * len(sizes)) - 1],
        bias=median(errors),
    )


def spreads(
    cases: Iterable[Case], estimate: Callable[[Case], Estimate | None] = lambda _: None
) -> Spreads:
    """Every metric that any case has; `estimate` gives others than the frozen ones."""
    errors: dict[Metric, list[float]] = {}
    for case in cases:
        guess = estimate(case)
        for metric in METRICS:
            if (error := case.error(metric, guess)) is not None:
                errors.setdefault(metric, []).append(error)
    return {metric: spread(metric, found) for metric, found in errors.items()}


def grouped(cases: Iterable[Case], axis: Axis) -> Mapping[str, Spreads]:
    """By the values of one axis, in their order."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(AXES[axis](case), []).append(case)
    return {value: spreads(found) for value, found in sorted(groups.items())}


def worst(cases: Iterable[Case], metric: Metric, count: int) -> tuple[tuple[Case, float], ...]:
    """The largest errors first, each with its case."""
    known = [(case, e) for case in cases if (e := case.error(metric)) is not None]
    return tuple(sorted(known, key=lambda item: (-abs(item[1]), item[0].trial))[:count])


def _ratio(predicted: float, measured: float | None) -> float | None:
    return predicted / measured - 1 if measured else None


def _joined(values: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(values))
