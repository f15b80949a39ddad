"""What autoquant decided for each group of layers, as a study's summary keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from tuner.labels import SCHEME_LABELS
from tuner.report.tables import table

SUMMARY_KEY = "autoquant"
HEADER = ("Layers", "Scheme", "Milliseconds of a step that decided")
Row = tuple[str, str, str]


def layer_rows(summary: Mapping[str, Any]) -> Iterator[Row]:
    """Names, the scheme they got, and the time under each that was timed. What does not have the
    form of a group is left out: a summary may be of another release."""
    for group in summary.get(SUMMARY_KEY, ()):
        if isinstance(group, Mapping) and isinstance(group.get("ms"), Mapping):
            times = (f"{_label(name)} {ms:.3g}" for name, ms in group["ms"].items())
            names = ", ".join(map(str, group.get("layers", ())))
            yield names, _label(group.get("scheme")), " · ".join(times)


def layers_table(summary: Mapping[str, Any]) -> Table | None:
    """None for a study that chose nothing layer by layer."""
    rows = list(layer_rows(summary))
    return table(*HEADER, title="Layer by layer", rows=rows) if rows else None


def _label(scheme: object) -> str:
    known: Mapping[Any, str] = SCHEME_LABELS
    return known.get(scheme, str(scheme))
