"""What trials teach the cost model: factors on its predictions, by the choices that explain it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import fmean, median

from registry.base import FrozenDict
from registry.inventory import ModelInventory
from registry.plan import ComponentPlan, Plan
from registry.record import Estimate, Measurement

STEP_BOUNDS = (0.25, 4.0)
"""A factor outside would say that the roofline is wrong, not that it is a little off."""
PEAK_BOUNDS = (0.6, 1.6)
SHRINKAGE = 2.0
"""As if each choice had been seen this often with no error: one odd trial moves little."""
UNCORRECTED = "roofline"
CORRECTED = "roofline+trials"

Known = tuple[Plan, Estimate, Measurement]


@dataclass(frozen=True)
class Corrections:
    """Factors on what the roofline says; each 1.0 until learned.

    `step` maps a choice of the denoiser ("scheme:float8_dynamic_row", "scope:regional", …) to its
    factor, beside `step_all`; a plan's factor is the product, kept within `STEP_BOUNDS`.
    `fixed` is on a request's time outside the steps. `peak` is on the device's peak, by the kind of
    the denoiser's placement: what a stream's allocator holds back says nothing of resident weights.
    `outside_bytes` replaces the guess of memory outside the allocator.
    """

    step_all: float = 1.0
    step: FrozenDict[float] = field(default_factory=lambda: FrozenDict({}))
    fixed: float = 1.0
    peak: FrozenDict[float] = field(default_factory=lambda: FrozenDict({}))
    outside_bytes: int | None = None
    trials: int = 0

    @property
    def source(self) -> str:
        """What an estimate made with these is based on."""
        return CORRECTED if self.trials else UNCORRECTED

    def step_factor(self, choice: ComponentPlan, backend: str) -> float:
        factor = self.step_all
        for name in traits(choice, backend):
            factor *= self.step.get(name, 1.0)
        return _bounded(factor, STEP_BOUNDS)


def traits(choice: ComponentPlan, backend: str) -> tuple[str, ...]:
    """The choices of a denoiser that a factor is learned for, most general first."""
    return (
        f"scope:{choice.compilation.scope}",
        f"scheme:{choice.quantization.scheme}",
        f"attention:{backend}",
        f"placement:{choice.placement.kind}",
    )


def learn(pairs: Iterable[Known], inventory: ModelInventory) -> Corrections:
    """Corrections from finished trials of one model on one machine.

    Every estimate must be uncorrected (`CostModel(inventory, hardware).estimate(...)`): factors on
    factors would drift. Raises ValueError for one that is not. Contaminated trials are ignored.
    """
    known = [item for item in pairs if item[2].contaminated is None]
    for _, estimate, _ in known:
        if estimate.source != UNCORRECTED:
            raise ValueError(f"cannot learn from an estimate of source {estimate.source!r}")
    if not known:
        return Corrections()
    step_all, step = _step_factors(known, inventory.denoiser.name)
    return Corrections(
        step_all=step_all,
        step=FrozenDict(step),
        fixed=_fixed_factor(known, inventory.default_steps),
        peak=FrozenDict(_peak_factors(known, inventory.denoiser.name)),
        outside_bytes=_outside_bytes(known),
        trials=len(known),
    )


def _step_factors(known: Sequence[Known], denoiser: str) -> tuple[float, dict[str, float]]:
    """The median error first, then each kind of choice explains part of what is left."""
    rest = [log(measured.step_ms / guess.step_ms) for _, guess, measured in known]
    shared = median(rest)
    rest = [value - shared for value in rest]
    named = [
        traits(plan.pipeline.component(denoiser), plan.pipeline.attention_backend)
        for plan, _, _ in known
    ]
    factors: dict[str, float] = {}
    for axis in range(len(named[0])):
        found = _mean_by([names[axis] for names in named], rest)
        rest = [value - found[names[axis]] for value, names in zip(rest, named, strict=True)]
        factors |= {name: exp(value) for name, value in found.items()}
    return _bounded(exp(shared), STEP_BOUNDS), factors


def _mean_by(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(name, []).append(value)
    return {name: sum(found) / (len(found) + SHRINKAGE) for name, found in groups.items()}


def _fixed_factor(known: Sequence[Known], default_steps: int) -> float:
    ratios = list(_fixed_ratios(known, default_steps))
    return _bounded(median(ratios), STEP_BOUNDS) if ratios else 1.0


def _fixed_ratios(known: Sequence[Known], default_steps: int) -> Iterator[float]:
    for _, guess, measured in known:
        if measured.latency_s is None:
            continue
        steps = fmean(item.steps for item in measured.shapes)
        guessed = guess.latency_s - default_steps * guess.step_ms / 1000
        seen = measured.latency_s - steps * measured.step_ms / 1000
        if guessed > 0 and seen > 0:
            yield seen / guessed


def _peak_factors(known: Sequence[Known], denoiser: str) -> dict[str, float]:
    ratios: dict[str, list[float]] = {}
    for plan, guess, measured in known:
        kind = plan.pipeline.component(denoiser).placement.kind
        ratio = measured.memory.peak_vram_bytes / guess.peak_vram_bytes
        ratios.setdefault(kind, []).append(ratio)
    return {kind: _bounded(median(found), PEAK_BOUNDS) for kind, found in ratios.items()}


def _outside_bytes(known: Sequence[Known]) -> int | None:
    seen = [item.memory.outside_allocator_bytes for _, _, item in known]
    measured = [value for value in seen if value > 0]
    return round(median(measured)) if measured else None


def _bounded(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
