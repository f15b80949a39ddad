"""Raw results as lines of CSV: one picture a line, appended as it is known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.drawing import Found
from benchmarks.quality.pairs import DATA, SetName

COLUMNS = (
    "treatment",
    "pair",
    "sqnr_db",
    "embedding_sqnr_db",
    "psnr_db",
    "ssim",
    "fidelity",
    "schedule",
)
REFERENCE = "reference"


@dataclass(frozen=True)
class Row:
    """One picture of one treatment, or of the reference itself."""

    treatment: str
    pair: int
    found: Found


def path_of(name: SetName) -> Path:
    return DATA / f"quality-{name}.csv"


def read(path: Path) -> Iterator[Row]:
    """Nothing where there is no file yet."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            steps = tuple(_value(text) for text in row["sqnr_db"].split())
            yield Row(
                row["treatment"],
                int(row["pair"]),
                Found(
                    steps,
                    _value(row["embedding_sqnr_db"]),
                    _value(row["psnr_db"]),
                    _value(row["ssim"]),
                    float(row["fidelity"]),
                    row["schedule"] == "same",
                ),
            )


def append(path: Path, some: Iterable[Row]) -> None:
    """Whole batches: a run that is cut off leaves complete lines of a batch, or none of it."""
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        if is_new:
            lines.writerow(COLUMNS)
        lines.writerows(_cells(row) for row in some)


def _cells(row: Row) -> tuple[str, ...]:
    found = row.found
    return (
        row.treatment,
        str(row.pair),
        " ".join(_text(value) for value in found.sqnr_db),
        _text(found.embedding_sqnr_db),
        _text(found.psnr_db),
        _text(found.ssim, 4),
        _text(found.fidelity, 3),
        "same" if found.same_schedule else "other",
    )


def _text(value: float | None, decimals: int = 2) -> str:
    return "nan" if value is None else f"{value:.{decimals}f}"


def _value(text: str) -> float | None:
    return None if text == "nan" else float(text)
