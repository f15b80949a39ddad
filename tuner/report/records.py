"""A published record as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from registry.digest import short
from registry.record import Measurement, Quality, TuningRecord
from registry.records import family
from tuner.front import closeness
from tuner.labels import describe
from tuner.matching import environment_differences
from tuner.report.tables import facts, table
from tuner.report.text import figures
from tuner.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from registry.records import StoredRecord
    from registry.verification import Verification


def record_summary(stored: StoredRecord) -> Table:
    """Who, where, what and how good, in two columns."""
    record = stored.record
    return facts(
        {
            "Record": record.id,
            "Status": status_text(stored),
            "Model": f"{record.model.name} ({record.model.weights} weights)",
            "Workload": record.workload.label,
            "Budget": format_bytes(record.budget_bytes),
            "Proved on": proved_on(record),
            "Plan": describe(record.plan),
            "Baseline": describe(record.baseline_plan),
            "Speed-up": speedup_text(record),
            "Quality": quality_text(record.quality),
            "Verified": verification_text(stored.verification),
            "Artifacts": artifacts_text(record),
            "Study": record.study,
            "Published": f"{stored.published_at:%Y-%m-%d %H:%M}Z, fetched {stored.fetches} times",
        }
    )


def status_text(stored: StoredRecord) -> str:
    status = f"{stored.status}, pinned" if stored.pinned else stored.status
    return f"{status}: {stored.revoked_reason}" if stored.revoked_reason else status


def speedup_text(record: TuningRecord) -> str:
    """A baseline that won is timed twice; the ratio of the two is noise."""
    if record.plan == record.baseline_plan:
        return "none: nothing faster than the baseline was proved"
    return f"{record.speedup:.2f}× over the baseline of the same run"


def proved_on(record: TuningRecord) -> str:
    runtime = record.environment.runtime
    driver = f", driver {runtime.driver}" if runtime.driver else ""
    return f"{record.environment.hardware.name}{driver}, torch {runtime.torch}"


def quality_text(quality: Quality) -> str:
    verdict = "passed" if quality.passed else "did not pass"
    worst = ", ".join(f"{name} {value:.4g}" for name, value in quality.worst.items())
    uncalibrated = "" if quality.calibrated else " (uncalibrated: random weights)"
    return f"{verdict} {quality.policy}{uncalibrated}; worst {worst or 'not scored'}"


def verification_text(found: Verification | None) -> str:
    """Of the last one of a record."""
    if found is None:
        return "never run again"
    when = f"{found.verified_at:%Y-%m-%d %H:%M}Z"
    return f"held {when}" if found.holds else f"drifted, {when}: {'; '.join(found.problems)}"


def artifacts_text(record: TuningRecord) -> str:
    kinds = (f"{item.kind} {format_bytes(item.size_bytes)}" for item in record.artifacts)
    return "; ".join((", ".join(kinds) or "none", *_warm_start_texts(record.measurement)))


def _warm_start_texts(measured: Measurement) -> Iterator[str]:
    """What the replay took: "3 of 3 functions ahead of time and 18 of 18 libraries taken"; graphs
    where functions were not all that it needed."""
    used = measured.warm_start
    if used is None:
        return
    counts = {
        "functions ahead of time": (used.function_hits, used.function_misses),
        "graphs": (used.graph_hits, used.graph_misses),
        "libraries": (used.library_hits, used.library_misses),
    }
    told = [f"{hit} of {hit + miss} {name}" for name, (hit, miss) in counts.items() if hit + miss]
    yield f"{' and '.join(told) or 'nothing'} taken"
    if measured.start_saved_s is not None:
        sooner = measured.start_saved_s >= 0
        by = format_seconds(abs(measured.start_saved_s))
        yield f"first image {by} {'sooner' if sooner else 'later'}"


def comparison(record: TuningRecord) -> Table:
    """The plan beside the baseline, figure by figure, with what was predicted."""
    made = table("Figure", ">Plan", ">Baseline", f">Predicted by {record.estimate.source}")
    for row in _comparison_rows(record):
        made.add_row(*row)
    return made


def _comparison_rows(record: TuningRecord) -> Iterator[tuple[str, str, str, str]]:
    ours, theirs, predicted = record.measurement, record.baseline, record.estimate
    yield "a step", *_seconds(ours.step_ms / 1000, theirs.step_ms / 1000, predicted.step_ms / 1000)
    yield "a request", *_seconds(ours.latency_s, theirs.latency_s, predicted.latency_s)
    yield "first image, cold", *_seconds(ours.cold_first_image_s, theirs.cold_first_image_s, None)
    yield "first image, warm", *_seconds(ours.warm_first_image_s, theirs.warm_first_image_s, None)
    yield "load", *_seconds(ours.load_s, theirs.load_s, None)
    yield (
        "device peak",
        _peak(ours),
        _peak(theirs),
        format_bytes(predicted.peak_vram_bytes),
    )
    yield (
        "host peak",
        format_bytes(ours.memory.host_peak_bytes),
        format_bytes(theirs.memory.host_peak_bytes),
        format_bytes(predicted.host_bytes),
    )


def _seconds(*values: float | None) -> tuple[str, str, str]:
    first, second, third = ("–" if value is None else format_seconds(value) for value in values)
    return first, second, third


def _peak(measurement: Measurement) -> str:
    return format_bytes(measurement.memory.peak_vram_bytes)


def shapes_table(measurement: Measurement) -> Table:
    """Each shape's own times."""
    rows = (
        (
            item.shape.label,
            str(item.steps),
            f"{item.step_ms:.4g} ± {item.step_ms_mad:.2g} ms",
            "–" if item.latency_s is None else format_seconds(item.latency_s),
            format_seconds(item.first_call_s),
        )
        for item in measurement.shapes
    )
    return table("Shape", ">Steps", ">A step", ">A request", ">First call", rows=rows)


def history_table(stored: Sequence[StoredRecord]) -> Table:
    """Newest first: what was published, replaced and taken out of service; where versions changed
    in between, what that did to the step time."""
    changes = [change_of_versions(item, stored[index + 1 :]) for index, item in enumerate(stored)]
    has_changes = any(changes)
    rows = (
        (
            short(item.record.id),
            f"{item.status}, pinned" if item.pinned else item.status,
            f"{item.published_at:%Y-%m-%d %H:%M}",
            item.record.model.name,
            item.record.workload.label,
            format_bytes(item.record.budget_bytes),
            describe(item.record.plan),
            figures(item.record.measurement),
            f"{item.record.speedup:.2f}×",
            nearness_text(item.record.quality),
            *((change,) if has_changes else ()),
        )
        for item, change in zip(stored, changes, strict=True)
    )
    return table(
        "Record",
        "Status",
        "Published",
        "Model",
        "Workload",
        ">Budget",
        "Plan",
        "Measured",
        ">Speed-up",
        ">Picture",
        *(("Since other versions",) if has_changes else ()),
        rows=rows,
    )


def nearness_text(quality: Quality) -> str:
    """ "38 dB", how near to the reference's pictures; "–" for what was not scored."""
    found = closeness(quality)
    return "–" if found is None else f"{found[1]:.0f} dB"


def change_of_versions(item: StoredRecord, older: Iterable[StoredRecord]) -> str:
    """Of the fastest plan of the last answer to the same question in another environment: "1.12×
    its step (torch 2.13.0 → 2.14.0)". Empty where there is none."""
    question = family(item.record)
    before = [one.record for one in older if family(one.record) == question]
    other = next((one for one in before if one.environment != item.record.environment), None)
    if other is None:
        return ""
    same_study = (one for one in before if one.study == other.study)
    best = min(same_study, key=lambda one: one.measurement.step_ms)
    ratio = item.record.measurement.step_ms / best.measurement.step_ms
    differences = environment_differences(item.record.environment, best.environment)
    changed = ", ".join(f"{name} {theirs} → {ours}" for name, ours, theirs in differences)
    return f"{ratio:.2f}× its step ({changed})"
