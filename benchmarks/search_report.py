"""What a comparison found, as text, tables and JSON types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.block_timings import step_errors
from benchmarks.comparing import ABLATED_SHARE, Comparison, Row
from benchmarks.contenders import TunerSearch
from benchmarks.replay import Landscape
from tuner.labels import describe
from tuner.report.tables import table
from tuner.units import format_bytes, format_seconds


def about(landscape: Landscape) -> str:
    """What was recorded, in a few lines."""
    items = landscape.by_plan.values()
    failed = sum(item.trial.measurement is None for item in items)
    contaminated = sum(item.is_contaminated for item in items)
    best = describe(landscape.best_plan)
    return (
        f"{landscape.name}, within {format_bytes(landscape.budget_bytes)}: {len(items)} plans "
        f"({failed} failed, {contaminated} measured beside foreign load); all of them take "
        f"{format_seconds(landscape.exhaustive_s)}; best {best} at "
        f"{format_seconds(landscape.best_s)} a request"
    )


def compared_table(part: Comparison) -> Table:
    columns = ("Time limit", "Search", ">Median", ">Worst", ">≤2%", ">Proved", ">Trials")
    rows = ((limit_text(row.limit), row.name, *_cells(row)) for row in part.rows)
    return table(*columns, ">Proofs", ">Time", title=_title(part, "Regret"), rows=rows)


def ablated_table(part: Comparison) -> Table:
    """A row for each part left out. It changes nothing where every figure is that of the whole."""
    whole = part.rows[:2]
    pairs = zip(part.rows[::2], part.rows[1::2], strict=True)
    rows = (
        (
            ended.name,
            *_cells(ended),
            *_cells(limited)[:4],
            "" if (ended, limited) == whole or not _same(whole, (ended, limited)) else "nothing",
        )
        for ended, limited in pairs
    )
    figures = (">Median", ">Worst", ">≤2%", ">Proved")
    more = (">Trials", ">Proofs", ">Time")
    limited = tuple(f"{name} in {ABLATED_SHARE:.0%}" for name in figures)
    title = _title(part, "Regret without")
    return table("Without", *figures, *more, *limited, "Changes", title=title, rows=rows)


def _same(whole: Sequence[Row], other: Sequence[Row]) -> bool:
    def figures(rows: Iterable[Row]) -> list[Any]:
        return [(row.regrets, row.shares, row.trials, row.proofs) for row in rows]

    return figures(whole) == figures(other)


def _title(part: Comparison, what: str) -> str:
    landscape = part.landscape
    return f"{what}: {landscape.name} within {format_bytes(landscape.budget_bytes)}"


def limit_text(limit: float | None) -> str:
    return "own end" if limit is None else f"{limit:.0%}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        regret_text(median(row.regrets)),
        regret_text(max(row.regrets)),
        f"{row.good:.0%}",
        f"{row.proved:.0%}",
        f"{median(row.trials):g}",
        f"{median(row.proofs):g}",
        f"{median(row.shares):.0%}",
    )


def regret_text(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.1%}"


def as_data(
    compared: Iterable[Comparison], ablated: Iterable[Comparison]
) -> dict[str, list[dict[str, Any]]]:
    """JSON types; a regret is null where there was no answer."""
    return {
        "compared": [row for part in compared for row in _data(part)],
        "ablated": [row for part in ablated for row in _data(part)],
    }


def _data(part: Comparison) -> Iterator[dict[str, Any]]:
    landscape = part.landscape
    for row in part.rows:
        regrets = [None if math.isinf(value) else value for value in row.regrets]
        yield {
            "landscape": landscape.name,
            "budget_bytes": landscape.budget_bytes,
            **asdict(row),
            "regrets": regrets,
        }


def error_text(landscape: Landscape, searching: TunerSearch) -> str:
    """ "median 3.1% off, 95% within 8.2%", of all plans that ran."""
    items = landscape.by_plan.values()
    errors = sorted(step_errors(items, searching.candidates(landscape)))
    if not errors:
        return "nothing to compare with"
    within = errors[math.ceil(0.95 * len(errors)) - 1]
    return f"median {median(errors):.1%} off, 95% within {within:.1%}"
