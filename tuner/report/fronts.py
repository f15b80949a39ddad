"""Speed against quality, as a study's summary keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from tuner.report.tables import table
from tuner.units import format_seconds

SUMMARY_KEY = "front"
TITLE = "Speed against quality"
HEADER = ("Plan", "A request", "Speed-up", "Picture", "Verdict")
Row = tuple[str, str, str, str, str]
FEWEST = 2
"""A front of one plan says nothing."""


def front_rows(summary: Mapping[str, Any]) -> Iterator[Row]:
    """From the fastest plan to the nearest to the model's own picture. What does not have the form
    of a front is left out: a summary may be of another release."""
    places = summary.get(SUMMARY_KEY, ())
    known = [item for item in places if isinstance(item, Mapping) and "latency_s" in item]
    for place in known if len(known) >= FEWEST else ():
        yield (
            str(place.get("label")),
            format_seconds(place["latency_s"]),
            f"{place.get('speedup', 0.0):.2f}×",
            closeness_text(place.get("measure"), place.get("quality_db")),
            _verdict(place),
        )


def front_table(summary: Mapping[str, Any]) -> Table | None:
    """None for a study that has no front."""
    rows = list(front_rows(summary))
    columns = (HEADER[0], *(f">{name}" for name in HEADER[1:3]), *HEADER[3:])
    return table(*columns, title=TITLE, rows=rows) if rows else None


def closeness_text(measure: object, quality_db: float | None) -> str:
    """ "14.2 dB nearer than another seed", or the denoiser's signal to noise."""
    if quality_db is None:
        return "the reference"
    if measure == "psnr_gain_db":
        return f"{quality_db:.1f} dB nearer than another seed's"
    return f"{quality_db:.1f} dB signal to noise of a step"


def _verdict(place: Mapping[str, Any]) -> str:
    if not place.get("passed"):
        return "refused"
    return "published" if place.get("published") else "passed"
