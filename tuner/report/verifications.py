"""A plan that was run again, beside what was published, as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from registry.digest import short
from registry.record import Measurement
from tuner.report.records import quality_text
from tuner.report.tables import table
from tuner.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tuner.verifying import Verified


def parts(found: Verified) -> Iterator[RenderableType]:
    """The figures of then and now, the pictures, and the verdict last."""
    yield _figures(found)
    if found.quality is not None:
        yield f"Pictures: {quality_text(found.quality)}"
    for change in found.changes:
        yield f"other than when proved: {change}"
    for note in found.notes:
        yield f"note: {note}"
    yield from _verdict(found)


def as_data(found: Verified) -> dict[str, Any]:
    """JSON types."""
    verification = found.verification
    return {
        "record": found.record.id,
        "verdict": verdict_of(found),
        "problems": [] if verification is None else list(verification.problems),
        "changes": list(found.changes),
        "notes": list(found.notes),
        "study": found.study,
        "published": found.record.measurement.model_dump(mode="json"),
        "published_baseline": found.record.baseline.model_dump(mode="json"),
        "now": None if found.now is None else found.now.model_dump(mode="json"),
        "baseline": found.baseline.model_dump(mode="json"),
        "quality": None if found.quality is None else found.quality.model_dump(mode="json"),
    }


def verdict_of(found: Verified) -> str:
    """ "holds", "drifted", or "unclear" where others were at work on the device."""
    if found.verification is None:
        return "unclear"
    return "holds" if found.verification.holds else "drifted"


def _verdict(found: Verified) -> Iterator[str]:
    name = f"record {short(found.record.id)}"
    verdict = verdict_of(found)
    if verdict == "holds":
        yield f"Holds: {name} does what it says"
    elif verdict == "unclear":
        yield f"Unclear: others were at work on the device; nothing is kept of {name}"
    elif found.verification is not None:
        yield f"Drifted: {name}"
        yield from (f"  {problem}" for problem in found.verification.problems)
        yield "Run `tuner run` again, or take it out of service with `tuner revoke`."


def _figures(found: Verified) -> Table:
    then, before = found.record.measurement, found.record.baseline
    now, baseline = found.now, found.baseline
    made = table("Figure", ">Published", ">Now")
    made.add_row("a step", _step(then), _step(now))
    made.add_row("a request", _request(then), _request(now))
    made.add_row("the baseline's", _request(before), _request(baseline))
    if found.record.plan != found.record.baseline_plan:
        made.add_row("speed-up", _ratio(before, then), _ratio(baseline, now))
    made.add_row("device peak", _peak(then), _peak(now))
    return made


def _step(measured: Measurement | None) -> str:
    return "–" if measured is None else format_seconds(measured.step_ms / 1000)


def _request(measured: Measurement | None) -> str:
    value = None if measured is None else measured.latency_s
    return "–" if value is None else format_seconds(value)


def _ratio(baseline: Measurement, plan: Measurement | None) -> str:
    if plan is None or baseline.latency_s is None or plan.latency_s is None:
        return "–"
    return f"{baseline.latency_s / plan.latency_s:.2f}×"


def _peak(measured: Measurement | None) -> str:
    return "–" if measured is None else format_bytes(measured.memory.peak_vram_bytes)
