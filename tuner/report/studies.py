"""A study and its trials as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from registry.digest import short
from registry.record import Trial
from tuner.labels import describe
from tuner.report import fronts, layers
from tuner.report.tables import facts, table
from tuner.report.text import mark, outcome, predicted_step
from tuner.units import format_seconds

if TYPE_CHECKING:
    from registry.studies import StudyRow

OWN_TABLES = ("audit", fronts.SUMMARY_KEY, layers.SUMMARY_KEY)
"""Parts of a summary that have tables of their own."""


SECONDS = "_s"
"""What names of times in seconds end in."""


def study_summary(study: StudyRow, trials: Sequence[Trial]) -> Table:
    """What was asked, where, how it stands and what it concluded, in two columns."""
    failed = sum(trial.failure is not None for trial in trials)
    spent_s = sum(trial.duration_s for trial in trials)
    finished = f", finished {study.finished_at:%Y-%m-%d %H:%M}Z" if study.finished_at else ""
    own = {
        "Study": study.id,
        "Status": study.status,
        "Model": f"{study.model.name} ({study.model.weights} weights)",
        "Workload": study.workload.label,
        "Device": study.environment.hardware.name,
        "Started": f"{study.started_at:%Y-%m-%d %H:%M}Z{finished}",
        "Trials": f"{len(trials)}, {failed} failed, {format_seconds(spent_s)} of measuring",
    }
    summary = {n: value for n, value in (study.summary or {}).items() if n not in OWN_TABLES}
    concluded = {_title(name): _text(name, value) for name, value in summary.items()}
    return facts(
        {**own, **{name: text for name, text in concluded.items() if text and name not in own}}
    )


def _text(name: str, value: Any) -> str:
    if name.endswith(SECONDS) and isinstance(value, int | float):
        return format_seconds(value)
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _title(name: str) -> str:
    return name.removesuffix(SECONDS).replace("_", " ").capitalize()


def studies_table(studies: Iterable[StudyRow]) -> Table:
    rows = (
        (
            short(study.id),
            study.status,
            f"{study.started_at:%Y-%m-%d %H:%M}",
            study.model.name,
            study.workload.label,
            study.environment.hardware.name,
        )
        for study in studies
    )
    return table("Study", "Status", "Started", "Model", "Workload", "On", rows=rows)


def trials_table(trials: Iterable[Trial], *, verbose: bool = False) -> Table:
    """Every trial of a study in the order it ran; `verbose` with every score that was refused."""
    rows = (
        (mark(trial), trial.rung, describe(trial.plan), _ending(trial, verbose=verbose))
        for trial in trials
    )
    return table("", "Rung", "Plan", "Outcome", rows=rows)


def _ending(trial: Trial, *, verbose: bool) -> str:
    """How a trial ended, and what its step was predicted to take, from what."""
    ended = outcome(trial, verbose=verbose)
    if trial.estimate is None:
        return ended
    return f"{ended}; a step predicted at {predicted_step(trial.estimate)}"
