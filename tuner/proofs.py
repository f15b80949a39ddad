"""Which published records answer a question: proved, within budget, allowed by today's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from registry.digest import short
from registry.environment import Environment
from registry.plan import Plan
from registry.record import Estimate, Measurement, TuningRecord
from registry.records import StoredRecord
from registry.workload import Shape, Workload
from tuner.candidate import Offer
from tuner.matching import MATCH_ORDER, Match, Request, covers, match, satisfies_policy
from tuner.objective import start_up_s
from tuner.units import format_bytes

if TYPE_CHECKING:
    from tuner.experience import Experience


class Predictions(Protocol):
    """What `tuner.foresight.Foresight` answers."""

    def refusals(self, plan: Plan) -> tuple[str, ...]: ...

    def estimate(self, plan: Plan, workload: Workload) -> Estimate: ...

    def best(self, request: Request, experience: Experience | None = None, /) -> Offer: ...


@dataclass(frozen=True)
class Proof:
    """A record that answers, and how it fits. `estimate` is for shapes that were not measured;
    `value_s` is the objective's at the shapes asked for, lower is better; `is_pinned`: people hold
    on to it for just this question."""

    stored: StoredRecord
    match: Match
    estimate: Estimate | None
    value_s: float
    is_pinned: bool

    @property
    def order(self) -> tuple[bool, int, bool, bool, float, int, float]:
        """What is pinned, then the best kind of match, then what held when it was last run again,
        then figures that nobody else had a part in, then the fastest, the smallest, the newest."""
        measured = self.stored.record.measurement
        newest = -self.stored.published_at.timestamp()
        disturbed = measured.contaminated is not None
        kind, peak = MATCH_ORDER.index(self.match.kind), measured.memory.peak_vram_bytes
        return (
            not self.is_pinned,
            kind,
            self.drifted,
            disturbed,
            self.value_s,
            peak,
            newest,
        )

    @property
    def drifted(self) -> bool:
        """It no longer did what it says when it was last run again."""
        verification = self.stored.verification
        return verification is not None and not verification.holds


class Proofs:
    """Judges one stored record after another. `notes` says why close ones were left out."""

    def __init__(
        self, request: Request, environment: Environment, foresight: Predictions | None
    ) -> None:
        self._request = request
        self._environment = environment
        self._foresight = foresight
        self.notes: list[str] = []

    def consider(self, stored: StoredRecord) -> Proof | None:
        """None for a record that does not answer."""
        matched = match(self._request, self._environment, stored.record)
        if stored.status != "current" or matched is None:
            return None
        estimate = self._estimate(stored.record)
        reason = self._refusal(stored.record, estimate)
        if reason is not None:
            self.notes.append(f"record {short(stored.record.id)} left out: {reason}")
            return None
        is_warm = matched.kind == "exact" and bool(stored.record.artifacts)
        value_s = _value_s(self._request, stored.record.measurement, estimate, is_warm=is_warm)
        return Proof(stored, matched, estimate, value_s, self._is_pinned(stored))

    def _is_pinned(self, stored: StoredRecord) -> bool:
        """A pin holds for the budget and the shapes that the record was proved for."""
        same_budget = stored.record.budget_bytes == self._request.budget_bytes
        return stored.pinned and same_budget and covers(stored.record, self._request.workload)

    def _estimate(self, record: TuningRecord) -> Estimate | None:
        """For shapes that were not measured: the prediction, moved by as much as the prediction
        for the measured shapes was off."""
        if self._foresight is None or covers(record, self._request.workload):
            return None
        asked = self._foresight.estimate(record.plan, self._request.workload)
        known = self._foresight.estimate(record.plan, record.workload)
        return _moved(asked, known, record.measurement)

    def _refusal(self, record: TuningRecord, estimate: Estimate | None) -> str | None:
        if not satisfies_policy(record, self._request.policy):
            return f"its picture does not meet the policy {self._request.policy}"
        if self._foresight is not None and (broken := self._foresight.refusals(record.plan)):
            return f"today's rules refuse its plan: {broken[0]}"
        return self._over_device(record, estimate) or self._over_host(record)

    def _over_device(self, record: TuningRecord, estimate: Estimate | None) -> str | None:
        peak = record.measurement.memory.peak_vram_bytes
        if estimate is not None:
            peak = estimate.peak_vram_bytes
        elif not _within(self._request.workload, record.workload):
            return "without an inventory its peak at larger shapes cannot be predicted"
        budget = self._request.budget_bytes
        if peak <= budget:
            return None
        return f"needs {format_bytes(peak)}, over the {format_bytes(budget)} given"

    def _over_host(self, record: TuningRecord) -> str | None:
        needed = record.measurement.memory.host_peak_bytes
        budget = self._request.host_budget_bytes
        if budget is None or needed <= budget:
            return None
        return f"needs {format_bytes(needed)} of host memory, over the {format_bytes(budget)} given"


def _value_s(
    request: Request, measured: Measurement, estimate: Estimate | None, *, is_warm: bool
) -> float:
    """Seconds by the objective, at the shapes asked for. `is_warm`: the record's artifacts apply,
    so its first picture need not wait for compilation."""
    if request.objective == "first-image":
        warm_s, cold_s = measured.warm_first_image_s, measured.cold_first_image_s
        known = (warm_s, cold_s) if is_warm else (cold_s,)
        return next((value for value in known if value is not None), start_up_s(measured))
    if estimate is not None:
        return estimate.latency_s
    times = [(_latency_s(measured, shape), shape.weight) for shape in request.workload.shapes]
    return sum(value * weight for value, weight in times) / sum(weight for _, weight in times)


def _latency_s(measured: Measurement, shape: Shape) -> float:
    """Of one shape; where it was not measured, the mean of those that were."""
    for item in measured.shapes:
        if item.shape.same_request(shape) and item.latency_s is not None:
            return item.latency_s
    return measured.step_ms / 1000 if measured.latency_s is None else measured.latency_s


def _moved(asked: Estimate, known: Estimate, measured: Measurement) -> Estimate:
    memory = measured.memory
    more_bytes = memory.peak_vram_bytes - known.peak_vram_bytes
    load_bytes = memory.load_peak_vram_bytes - known.load_peak_vram_bytes
    slower = measured.step_ms / known.step_ms
    return asked.model_copy(
        update={
            "peak_vram_bytes": max(0, asked.peak_vram_bytes + more_bytes),
            "load_peak_vram_bytes": max(0, asked.load_peak_vram_bytes + load_bytes),
            "step_ms": asked.step_ms * slower,
            "latency_s": asked.latency_s * slower,
            "source": f"{asked.source}+trials",
        }
    )


def _within(asked: Workload, known: Workload) -> bool:
    """Whether each asked shape is no larger in any way than one that was measured."""
    return all(any(_no_larger(shape, own) for own in known.shapes) for shape in asked.shapes)


def _no_larger(shape: Shape, known: Shape) -> bool:
    sizes = ("height", "width", "frames", "batch_size", "guidance")
    fits = all(getattr(shape, name) <= getattr(known, name) for name in sizes)
    return fits and shape.text_tokens == known.text_tokens
