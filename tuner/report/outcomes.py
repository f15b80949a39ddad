"""How a study ended, as people read it and as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from registry.digest import short
from registry.record import TuningRecord
from tuner.labels import describe
from tuner.report.audits import audit_parts
from tuner.report.fronts import SUMMARY_KEY, front_table
from tuner.report.records import comparison, quality_text, speedup_text
from tuner.report.tables import facts
from tuner.request import StudyOutcome
from tuner.units import format_seconds

UNTRIED_LINES = 5


def as_data(outcome: StudyOutcome) -> dict[str, Any]:
    """JSON types; `best` is the whole record."""
    best = outcome.best
    return {
        "study": outcome.study_id,
        "published": list(outcome.published),
        "best": None if best is None else {"id": best.id, **best.model_dump(mode="json")},
        "speedup": None if best is None else best.speedup,
        "baseline": outcome.baseline and outcome.baseline.model_dump(mode="json"),
        "trials": outcome.trials,
        "start_up_hidden_s": outcome.hidden_s,
        "front": [place.as_json() for place in outcome.front],
        "untried": list(outcome.untried),
        "notes": list(outcome.notes),
        "why_nothing": outcome.why_nothing,
        "audit": None if outcome.audit is None else outcome.audit.as_json(),
    }


def parts(outcome: StudyOutcome) -> Iterator[RenderableType]:
    """The winner beside the baseline, what else was published, and what was not tried."""
    if outcome.best is None:
        yield Text(f"Nothing could be proved: {outcome.why_nothing or 'no trial ran'}.", "yellow")
    else:
        yield from _winner(outcome.best, outcome)
    front = front_table({SUMMARY_KEY: [place.as_json() for place in outcome.front]})
    yield from (() if front is None else (front,))
    yield from (Text(f"note: {note}") for note in outcome.notes)
    yield from _untried(outcome.untried)
    if outcome.audit is not None:
        yield from audit_parts(outcome.audit.as_json())


def _winner(best: TuningRecord, outcome: StudyOutcome) -> Iterator[RenderableType]:
    others = len(outcome.published) - 1
    yield facts(
        {
            "Best plan": describe(best.plan),
            "Baseline": describe(best.baseline_plan),
            "Speed-up": speedup_text(best),
            "Quality": quality_text(best.quality),
            "Record": f"{short(best.id)}" + (f" and {others} more" if others else ""),
            "Study": f"{short(outcome.study_id)}, {outcome.trials} trials{_hidden(outcome)}",
        }
    )
    yield comparison(best)


def _hidden(outcome: StudyOutcome) -> str:
    if not outcome.hidden_s:
        return ""
    return f", {format_seconds(outcome.hidden_s)} of starting workers hidden behind them"


def _untried(untried: tuple[str, ...]) -> Iterator[RenderableType]:
    if untried:
        yield Text(f"Not tried: {len(untried)} candidates", "dim")
        yield from (Text(f"  {line}", "dim") for line in untried[:UNTRIED_LINES])
    if len(untried) > UNTRIED_LINES:
        yield Text(f"  and {len(untried) - UNTRIED_LINES} more; --json lists them all", "dim")
