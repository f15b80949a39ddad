"""The baseline of a study: the unquantized model as anybody would run it within the budget.

Its pictures are the reference of every verdict, its time the one that speed-ups are given against.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from registry.errors import TrialFailed
from registry.record import Trial
from tuner.candidate import Candidate
from tuner.clock import TimeLimit
from tuner.desk import TrialDesk
from tuner.journal import Journal
from tuner.units import format_bytes

TOLERANCE = 1.02
"""A baseline predicted this little over the budget is tried; each that fails costs a whole load."""


def choose_baseline(
    placements: Sequence[Candidate], desk: TrialDesk, journal: Journal, time_limit: TimeLimit
) -> Trial:
    """The trial of the first placement that runs within the budget.

    One that ran before is taken while its reference is still there, and one that failed before is
    not tried again. Raises TrialFailed saying why each of them could not run.
    """
    before = {trial.plan.digest: trial for trial in journal.kept if trial.rung == "pipeline"}
    reasons = []
    for candidate in placements:
        ended: Trial | str | None = before.get(candidate.plan.digest)
        if ended is None or (_measured(ended) and not desk.has_reference):
            ended = _attempt(candidate, desk, journal, time_limit)
        if isinstance(ended, Trial) and _measured(ended):
            return ended
        reasons.append(f"{journal.label(candidate.plan)}: {_reason(ended)}")
    raise TrialFailed(
        "no baseline could run within the budget: " + "; ".join(reasons),
        hint="`tuner show STUDY` lists the trials and their logs.",
    )


def _attempt(
    candidate: Candidate, desk: TrialDesk, journal: Journal, time_limit: TimeLimit
) -> Trial | str:
    """Its trial, or why it is not worth one."""
    peak_bytes = candidate.estimate.peak_vram_bytes
    if peak_bytes > desk.request.budget_bytes * TOLERANCE:
        return f"needs about {format_bytes(peak_bytes)}"
    if time_limit.is_over:
        return "no time was left"
    plan, estimate = candidate.plan, candidate.estimate
    run = partial(desk.baseline, plan, estimate, time_limit.remaining_s)
    return journal.trial("pipeline", plan, run)


def _measured(ended: Trial | str) -> bool:
    return isinstance(ended, Trial) and ended.measurement is not None


def _reason(ended: Trial | str) -> str:
    if isinstance(ended, str):
        return ended
    return ended.failure.message if ended.failure else "no result"
