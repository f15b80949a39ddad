"""The baseline of a study: the unquantized model as anybody would run it within the budget.

Its pictures are the reference of every verdict, its time the one that speed-ups are given against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    placements: Sequence[Candidate],
    desk: TrialDesk,
    journal: Journal,
    time_limit: TimeLimit,
    capacity_bytes: int,
) -> Trial:
    """The trial of the first placement that runs within the budget; where none is expected to, of
    the smallest one within `capacity_bytes`, what the device has: pictures must be compared with
    something, and a plan that cannot be published is no less the reference.

    One that ran before is taken while its reference is still there, and one that failed before is
    not tried again. Raises TrialFailed saying why each of them could not run.
    """
    before = {trial.plan.digest: trial for trial in journal.kept if trial.rung == "pipeline"}
    budget_bytes = desk.request.budget_bytes
    reasons, outside = [], []
    for candidate in placements:
        if candidate.estimate.peak_vram_bytes > budget_bytes * TOLERANCE:
            outside.append(candidate)
            needed = format_bytes(candidate.estimate.peak_vram_bytes)
            reasons.append(f"{journal.label(candidate.plan)}: needs about {needed}")
            continue
        trial, reason = _tried(candidate, before, desk, journal, time_limit, budget_bytes)
        if trial is not None:
            return trial
        reasons.append(reason)
    fitting = [item for item in outside if item.estimate.peak_vram_bytes <= capacity_bytes]
    if fitting and len(outside) == len(placements):
        smallest = min(fitting, key=lambda item: item.estimate.peak_vram_bytes)
        journal.note(
            "the unquantized model does not fit the budget: it is measured outside of it, as the "
            "reference alone"
        )
        trial, reason = _tried(smallest, before, desk, journal, time_limit, capacity_bytes)
        if trial is not None:
            return trial
        reasons.append(reason)
    raise _no_baseline(reasons, time_limit)


def _no_baseline(reasons: Sequence[str], time_limit: TimeLimit) -> TrialFailed:
    if time_limit.is_over:
        return TrialFailed(
            "the time limit came before the baseline was measured: " + "; ".join(reasons),
            hint="Give more with --time-limit: the log lines say what the baseline took.",
        )
    return TrialFailed(
        "no baseline could run within the budget: " + "; ".join(reasons),
        hint="`tuner history --studies` names the study, `tuner show` its trials and their logs.",
    )


def _tried(
    candidate: Candidate,
    before: Mapping[str, Trial],
    desk: TrialDesk,
    journal: Journal,
    time_limit: TimeLimit,
    budget_bytes: int,
) -> tuple[Trial | None, str]:
    """Its trial if it measured something, and else why not."""
    label, plan = journal.label(candidate.plan), candidate.plan
    trial = before.get(plan.digest)
    if trial is None or (trial.measurement is not None and not desk.has_reference):
        if time_limit.is_over:
            return None, f"{label}: no time was left"
        limit_s, estimate = time_limit.remaining_s, candidate.estimate
        run = partial(desk.baseline, plan, estimate, limit_s, budget_bytes=budget_bytes)
        trial = journal.trial("pipeline", plan, run)
        if _crashed(trial) and not time_limit.is_over:
            journal.note(f"{label}: its worker crashed; once more, since all else waits for it")
            trial = journal.trial("pipeline", plan, run)
    if trial.measurement is not None:
        return trial, ""
    return None, f"{label}: {_first_line(trial)}"


def _crashed(trial: Trial) -> bool:
    return trial.failure is not None and trial.failure.kind == "crashed"


def _first_line(trial: Trial) -> str:
    message = trial.failure.message if trial.failure else ""
    return message.splitlines()[0] if message else "no result"
