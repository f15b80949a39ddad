"""What there is to try: every candidate with its estimate, or why it was dropped unmeasured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import AttentionBackend, ComponentPlan, Plan, Quantization
from registry.record import Estimate
from registry.workload import Workload
from tuner.candidate import Candidate
from tuner.choices import Ladder, Restriction
from tuner.combine import PlanMaker, baseline_plans, candidates
from tuner.cost_model import CostModel, smallest_budget
from tuner.fill import Filler
from tuner.labels import describe
from tuner.rules import RuleBook
from tuner.units import format_bytes, format_seconds

SPACE_VERSION = 7
"""Raised whenever the same model and machine would give other candidates: a study continues only
in the space it began in."""
PEAK_TOLERANCE = 1.05
"""A plan predicted this little over the budget is tried: the prediction may be high."""
DOMINANCE_MARGIN = 1.5
"""Times are off by up to a third either way before trials; a plan predicted this much slower than
another, no smaller and no closer to the original, cannot win."""
LOSSY_ATTENTION: frozenset[AttentionBackend] = frozenset({"sage", "cudnn_fp8"})

__all__ = [
    "SPACE_VERSION",
    "Candidate",
    "Dropped",
    "Restriction",
    "Stage",
    "Survey",
    "baseline_plans",
    "candidates",
    "survey",
]

Stage = Literal["rule", "memory", "host_memory", "dominated"]


@dataclass(frozen=True)
class Dropped:
    """A plan that is not tried, and why, in one line. `rule` names the rule at stage "rule";
    `estimate` is there from stage "memory" on."""

    plan: Plan
    stage: Stage
    reason: str
    rule: str | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Survey:
    """`kept` from the fastest predicted to the slowest, those a little over the budget last.
    `smallest_budget_bytes` is what the smallest plan that breaks no rule needs; None for none.
    `smallest_host_bytes` is the same of host memory, among those within the device's budget.
    `step_caches` are what the best of `kept` may be tried with, from mild to bold by kind."""

    kept: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]
    smallest_budget_bytes: int | None
    smallest_host_bytes: int | None = None
    step_caches: tuple[Ladder, ...] = ()


def survey(
    inventory: ModelInventory,
    environment: Environment,
    workload: Workload,
    budget_bytes: int,
    host_budget_bytes: int | None,
    cost_model: CostModel,
    restrict: Restriction | None = None,
    mixed: Sequence[Quantization] = (),
) -> Survey:
    """Judge every candidate by rules, then by predicted memory, then against each other. Plans
    whose denoiser streams are joined by the same with as many resident blocks as the budget holds.

    `host_budget_bytes` None is all of the machine's memory; `mixed` as in `candidates`.
    Deterministic.
    """
    book = RuleBook(inventory, environment)
    filler = Filler(inventory, budget_bytes)
    allowed: list[Candidate] = []
    dropped: list[Dropped] = []
    maker = PlanMaker(inventory, environment, restrict or Restriction(), workload, book, mixed)
    for plan in (*maker.plans(), *maker.rejected):
        if broken := book.violations(plan):
            dropped.append(Dropped(plan, "rule", str(broken[0]), broken[0].rule))
        else:
            allowed.append(Candidate(plan, cost_model.estimate(plan, workload)))
            filled = filler.filled(allowed[-1])
            if filled is not None:
                allowed.append(Candidate(filled, cost_model.estimate(filled, workload)))
    host_bytes = host_budget_bytes or environment.hardware.host_ram_bytes
    fitting = _fitting(allowed, budget_bytes, host_bytes, dropped)
    kept = _undominated(_ranked(fitting, budget_bytes), inventory, dropped)
    within = [item for item in allowed if item.estimate.peak_vram_bytes <= budget_bytes]
    return Survey(
        tuple(kept),
        tuple(dropped),
        smallest_budget(item.estimate for item in allowed),
        min((item.estimate.host_bytes for item in within), default=None),
        maker.step_caches,
    )


def _fitting(
    allowed: Iterable[Candidate], budget_bytes: int, host_bytes: int, dropped: list[Dropped]
) -> list[Candidate]:
    fitting = []
    for item in allowed:
        estimate = item.estimate
        if estimate.peak_vram_bytes > budget_bytes * PEAK_TOLERANCE:
            reason = _over(estimate.peak_vram_bytes, budget_bytes, "on the device")
            dropped.append(Dropped(item.plan, "memory", reason, None, estimate))
        elif estimate.host_bytes > host_bytes:
            reason = _over(estimate.host_bytes, host_bytes, "of host memory")
            dropped.append(Dropped(item.plan, "host_memory", reason, None, estimate))
        else:
            fitting.append(item)
    return fitting


def _over(needed: int, budget: int, where: str) -> str:
    return f"needs about {format_bytes(needed)} {where}, over the {format_bytes(budget)} given"


def _ranked(fitting: Iterable[Candidate], budget_bytes: int) -> list[Candidate]:
    """Fastest first; equal predictions by memory, then in the order of `candidates`."""

    def order(item: Candidate) -> tuple[bool, float, int]:
        peak = item.estimate.peak_vram_bytes
        return peak > budget_bytes, item.estimate.latency_s, peak

    return sorted(fitting, key=order)


def _undominated(
    ranked: Sequence[Candidate], inventory: ModelInventory, dropped: list[Dropped]
) -> list[Candidate]:
    """Without those that a plan of the same picture, or of the unquantized one, beats by far."""
    fronts: dict[object, _Front] = defaultdict(_Front)
    pictures = _Pictures()
    kept: list[Candidate] = []
    for item in sorted(ranked, key=lambda item: item.estimate.latency_s):
        own = pictures.of(item.plan)
        better = fronts[own].beats(item) or fronts[pictures.PLAIN].beats(item)
        if better is None:
            fronts[own].add(item)
            kept.append(item)
        else:
            reason = _slower(item, better, inventory)
            dropped.append(Dropped(item.plan, "dominated", reason, None, item.estimate))
    alive = {id(item) for item in kept}
    return [item for item in ranked if id(item) in alive]


def _slower(item: Candidate, better: Candidate, inventory: ModelInventory) -> str:
    ours, theirs = item.estimate.latency_s, better.estimate.latency_s
    return (
        f"predicted {format_seconds(ours)}, no smaller than "
        f"{describe(better.plan, inventory)!r} at {format_seconds(theirs)}"
    )


class _Pictures:
    """What of a plan changes its picture: quantized components, and a lossy attention backend.

    Equal for equal choices; `PLAIN` for none of them.
    """

    PLAIN: tuple[object, ...] = ()

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, Quantization], int] = {}
        self._known: dict[tuple[str, int], tuple[ComponentPlan, int | None]] = {}

    def of(self, plan: Plan) -> tuple[object, ...]:
        options = plan.pipeline
        numbers = (self._number(name, item) for name, item in options.components.items())
        lossy = (options.attention_backend,) if options.attention_backend in LOSSY_ATTENTION else ()
        return (*(number for number in numbers if number is not None), *lossy)

    def _number(self, name: str, choice: ComponentPlan) -> int | None:
        key = (name, id(choice))
        if key not in self._known:
            self._known[key] = (choice, self._new_number(name, choice.quantization))
        return self._known[key][1]

    def _new_number(self, name: str, quantization: Quantization) -> int | None:
        if quantization.scheme == "none":
            return None
        return self._numbers.setdefault((name, quantization), len(self._numbers))


class _Front:
    """Plans by latency, the smallest so far among them; asked only for ever slower plans."""

    def __init__(self) -> None:
        self._waiting: list[Candidate] = []
        self._next = 0
        self._smallest: list[Candidate] = []

    def add(self, item: Candidate) -> None:
        self._waiting.append(item)

    def beats(self, item: Candidate) -> Candidate | None:
        """One that is faster by the margin and needs no more device or host memory."""
        self._admit(item.estimate.latency_s / DOMINANCE_MARGIN)
        for other in self._smallest:
            if _needs_no_more(other.estimate, item.estimate):
                return other
        return None

    def _admit(self, latency_s: float) -> None:
        while self._next < len(self._waiting):
            item = self._waiting[self._next]
            if item.estimate.latency_s > latency_s:
                return
            self._next += 1
            if not any(_needs_no_more(old.estimate, item.estimate) for old in self._smallest):
                self._smallest.append(item)


def _needs_no_more(one: Estimate, other: Estimate) -> bool:
    smaller = one.peak_vram_bytes <= other.peak_vram_bytes
    return smaller and one.host_bytes <= other.host_bytes
