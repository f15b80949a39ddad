"""The search without one of its parts, rungs, predictions or checks at a time.

Nothing of the search is edited: it is given other parts, other predictions, or a machine that
answers otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from benchmarks.contenders import TunerSearch
from benchmarks.recorded import RecordedTrial
from benchmarks.replay import UNKNOWN_QUALITY, Landscape, Machine, whole_s
from registry.record import Trial
from tuner.candidate import Candidate
from tuner.search.entry import Entry
from tuner.search.parts import ANYTIME, Parts, Stage
from tuner.search.setbacks import Setbacks
from tuner.search.surrogate import ErrorModel


class NothingImplied(Setbacks):
    """A failure says nothing about plans that did not run."""

    @override
    def implied(self, entry: Entry) -> str | None:
        return None

    @override
    def chance(self, entry: Entry) -> float:
        return 1.0


class NoVerdict(Machine):
    """Every picture is accepted, at every rung."""

    @override
    def _judged(self, trial: Trial) -> Trial:
        return _accepted(super()._judged(trial))


class LateVerdict(Machine):
    """A denoiser trial says nothing of the picture."""

    @override
    def _denoiser(self, item: RecordedTrial) -> Trial:
        return _accepted(super()._denoiser(item))


class WholeRequests(Machine):
    """A denoiser trial takes as long as whole requests do."""

    @override
    def _denoiser(self, item: RecordedTrial) -> Trial:
        duration_s = whole_s(item, "denoiser", self.landscape.steps)
        return super()._denoiser(item).model_copy(update={"duration_s": duration_s})


def unpredicted(landscape: Landscape) -> Sequence[Candidate]:
    """Every plan is predicted to be as fast as the baseline is."""
    return [_as_fast_as(landscape.reference, item) for item in landscape.candidates]


def by_roofline(landscape: Landscape) -> Sequence[Candidate]:
    """As predicted before the baseline."""
    return [Candidate(item.trial.plan, item.roofline) for item in landscape.by_plan.values()]


def reference_by_roofline(landscape: Landscape) -> Candidate:
    return Candidate(landscape.baseline.trial.plan, landscape.baseline.roofline)


def without(*names: Stage) -> Parts:
    return Parts(stages=tuple(name for name in ANYTIME if name not in names))


ABLATIONS: tuple[TunerSearch, ...] = (
    TunerSearch("predictions", candidates=unpredicted),
    TunerSearch(
        "what the baseline teaches", candidates=by_roofline, reference=reference_by_roofline
    ),
    TunerSearch("learning from errors", parts=Parts(errors=lambda _: ErrorModel([]))),
    TunerSearch("what failures imply", parts=Parts(setbacks=NothingImplied)),
    TunerSearch("gain by the time it takes", parts=Parts(by_time=False)),
    TunerSearch("exploring", parts=without("probe", "explore")),
    TunerSearch("probes", parts=without("probe")),
    TunerSearch("early proof", parts=without("prove_first")),
    TunerSearch("denoiser rung", machine=WholeRequests),
    TunerSearch("gate", machine=NoVerdict),
    TunerSearch("gate at the denoiser rung", machine=LateVerdict),
    TunerSearch("replay", parts=without("replay_winner", "replay_others", "settle")),
    TunerSearch("settling near finalists", parts=without("settle")),
    TunerSearch("last chance", parts=without("last_chance")),
    TunerSearch("widening", parts=without("widen", "replay_others")),
)
"""Each by what it leaves out."""


def _as_fast_as(reference: Candidate, item: Candidate) -> Candidate:
    known = reference.estimate
    update = {"step_ms": known.step_ms, "latency_s": known.latency_s}
    return Candidate(item.plan, item.estimate.model_copy(update=update))


def _accepted(trial: Trial) -> Trial:
    return trial if trial.quality is None else trial.model_copy(update={"quality": UNKNOWN_QUALITY})
