"""Prediction errors as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from tuner.hold_out import HeldOut
from tuner.labels import describe
from tuner.model_error import METRICS, TOLERANCE, Case, Metric, Spread, Spreads
from tuner.report.tables import table
from tuner.units import format_bytes, format_seconds

TITLES: Mapping[Metric, str] = {"peak": "Device peak", "latency": "A request", "step": "A step"}
SHORT: Mapping[Metric, str] = {"peak": "Peaks", "latency": "Requests", "step": "Steps"}
NOTHING = ("–",) * 4


def overall_table(found: Spreads) -> Table:
    """One row a metric."""
    rows = ((TITLES[metric], *_cells(found[metric])) for metric in METRICS if metric in found)
    columns = (">Trials", ">Within", ">Median", ">95th percentile", ">Bias")
    return table("Predicted", *columns, rows=rows)


def groups_table(axes: Mapping[str, Mapping[str, Spreads]]) -> Table:
    """One row a value of each axis: of each metric its count, share within, median and 95th
    percentile."""
    columns = [
        column
        for metric in METRICS
        for column in (f">{SHORT[metric]}", f">≤{TOLERANCE[metric]:.0%}", ">median", ">p95")
    ]
    rows = (
        (axis, value, *_metric_cells(found))
        for axis, groups in axes.items()
        for value, found in groups.items()
    )
    return table("By", "", *columns, rows=rows)


def worst_table(metric: Metric, found: Sequence[tuple[Case, float]]) -> Table:
    """The trials that were predicted worst, by the ids that `tuner show` understands."""
    rows = (
        (
            case.trial,
            f"{error:+.1%}",
            *_figures(metric, case),
            f"{case.model} at {case.workload.label}",
            describe(case.plan),
        )
        for case, error in found
    )
    columns = ("Study/trial", ">Error", ">Predicted", ">Measured", "Model", "Plan")
    return table(*columns, title=f"Worst: {TITLES[metric].lower()}", rows=rows)


def held_out_table(found: HeldOut) -> Table:
    """What was predicted then, what the roofline says, and what the others teach."""
    title = (
        f"{found.axis}={found.value}: {found.count} trials held out, "
        f"{found.taught_by} others to learn from"
    )
    if found.unknown:
        title += f"; {found.unknown} of a model whose inventory is not here"
    sources = (
        ("frozen before the trial", found.frozen),
        ("roofline alone, now", found.roofline),
        ("learned from the others", found.refitted),
    )
    rows = (
        (TITLES[metric], name, *_cells(spreads[metric]))
        for metric in METRICS
        for name, spreads in sources
        if metric in spreads
    )
    columns = (">Trials", ">Within", ">Median", ">95th percentile", ">Bias")
    return table("Predicted", "From", *columns, title=title, rows=rows)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """ "Left out: 3 contaminated, 1 failed (crashed)"; empty for nothing."""
    if not left_out:
        return ""
    counted = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return "Left out: " + ", ".join(f"{count} {reason}" for reason, count in counted) + "."


def _cells(found: Spread) -> tuple[str, str, str, str, str]:
    return (
        str(found.count),
        f"{found.within:.0%}",
        f"{found.median:.1%}",
        f"{found.p95:.1%}",
        f"{found.bias:+.1%}",
    )


def _metric_cells(found: Spreads) -> Iterator[str]:
    for metric in METRICS:
        yield from _cells(found[metric])[:4] if metric in found else NOTHING


def _figures(metric: Metric, case: Case) -> tuple[str, str]:
    guess, measured = case.estimate, case.measurement
    if metric == "peak":
        return format_bytes(guess.peak_vram_bytes), format_bytes(measured.memory.peak_vram_bytes)
    if metric == "step":
        return format_seconds(guess.step_ms / 1000), format_seconds(measured.step_ms / 1000)
    return format_seconds(guess.latency_s), format_seconds(measured.latency_s or 0.0)
