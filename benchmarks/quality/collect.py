"""Draws every pair under every treatment. Goes on where an earlier run was cut off."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.quality.drawing import Found, Judge, load_pipeline, write_reference
from benchmarks.quality.pairs import Pair, SetName, pairs
from benchmarks.quality.rows import REFERENCE, Row, append, path_of, read
from benchmarks.quality.treatments import TREATMENTS, Treatment, plan_of
from tuner.gate import CEILING_DB
from tuner.pipeline.reference import CAPTURED_STEPS, Reference

AT_ONCE = 10
"""Pictures of one request: half of the time that each alone would take."""


def collect(name: SetName, only: Sequence[str] = ()) -> None:
    """Append what is missing in the set's file; `only` names treatments. Without it all are drawn,
    step caches only held-out: no threshold rests on them."""
    done = {(row.treatment, row.pair) for row in read(path_of(name))}
    every = pairs(name)
    batches = [every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE)]
    with tempfile.TemporaryDirectory() as folder:
        collector = _Collector(name, batches, Path(folder), done)
        collector.reference()
        for treatment in only or [item for item in TREATMENTS if _belongs(item, name)]:
            collector.treatment(treatment)


def _belongs(treatment: str, name: SetName) -> bool:
    return name == "held-out" or TREATMENTS[treatment].kind != "cached"


class _Collector:
    def __init__(
        self,
        name: SetName,
        batches: Sequence[Sequence[Pair]],
        folder: Path,
        done: set[tuple[str, int]],
    ) -> None:
        self._name, self._batches = name, batches
        self._folder, self._done = folder, done
        self._judge = Judge()

    def reference(self) -> None:
        """Always drawn: only its scores are kept between runs."""
        pipe, started = load_pipeline(plan_of()), time.monotonic()
        for number, batch in enumerate(self._batches):
            images = write_reference(pipe, batch, self._path(number)).images
            shares = self._judge.fidelity(images, batch)
            self._keep(REFERENCE, batch, [_perfect(share) for share in shares])
        self._tell(REFERENCE, started)

    def treatment(self, treatment: str) -> None:
        """Nothing where all of it is known."""
        chosen = TREATMENTS[treatment]
        missing = [
            number for number, batch in enumerate(self._batches) if self._lacks(treatment, batch)
        ]
        if not missing:
            return
        pipe, started = load_pipeline(chosen.plan), time.monotonic()
        for number in missing:
            batch = self._batches[number]
            self._keep(treatment, batch, self._scores(pipe, chosen, number))
        self._tell(treatment, started)

    def _scores(self, pipe: Any, chosen: Treatment, number: int) -> list[Found]:
        reference = Reference(self._path(number))
        with chosen.planting(pipe, number):
            return self._judge.scores(pipe, self._batches[number], reference, chosen.added_to_seed)

    def _lacks(self, treatment: str, batch: Sequence[Pair]) -> bool:
        return any((treatment, pair.number) not in self._done for pair in batch)

    def _keep(self, treatment: str, batch: Sequence[Pair], found: Sequence[Found]) -> None:
        new = [
            Row(treatment, pair.number, item)
            for pair, item in zip(batch, found, strict=True)
            if (treatment, pair.number) not in self._done
        ]
        append(path_of(self._name), new)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _tell(self, treatment: str, started: float) -> None:
        click.echo(f"{self._name}: {treatment} in {time.monotonic() - started:.0f} s", err=True)


def _perfect(fidelity: float) -> Found:
    return Found((CEILING_DB,) * CAPTURED_STEPS, CEILING_DB, CEILING_DB, 1.0, fidelity)
