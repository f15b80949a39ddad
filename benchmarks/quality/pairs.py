"""Which prompts and seeds pictures are drawn with, split by both into two sets.

The lists lie in `benchmarks/data/quality-pairs.csv`; they were written once by `write_pairs`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from examples.train_tiny.layout import SceneBatch, lay_out
from examples.train_tiny.scenes import DOMAINS, Scene, scenes

SetName = Literal["calibration", "held-out"]
SETS: tuple[SetName, ...] = ("calibration", "held-out")
DATA = Path(__file__).resolve().parents[1] / "data"
PAIRS = DATA / "quality-pairs.csv"
PAIRS_A_SET = 100
FIRST_SEED: dict[SetName, int] = {"calibration": 1_000, "held-out": 2_000}
OTHER_SEED = 500_000
"""Added to a seed where the same prompt is drawn once more."""


@dataclass(frozen=True)
class Pair:
    """One picture: `scene` is what its prompt asks for."""

    number: int
    scene: Scene
    seed: int

    @property
    def prompt(self) -> str:
        return self.scene.caption()


def pairs(name: SetName) -> tuple[Pair, ...]:
    """The pairs of one set. No prompt and no seed is in both."""
    source = enumerate(_distinct_scenes())
    first = SETS.index(name) * PAIRS_A_SET
    return tuple(
        Pair(number - first, scene, FIRST_SEED[name] + number - first)
        for number, scene in islice(source, first, first + PAIRS_A_SET)
    )


def _distinct_scenes() -> Sequence[Scene]:
    drawn = scenes(DOMAINS["full"], "quality", held_out=None)
    return tuple(dict.fromkeys(islice(drawn, 3 * PAIRS_A_SET)))


def asked_for(some: Sequence[Pair]) -> SceneBatch:
    """What a classifier should read in the pictures of `some`."""
    return lay_out([pair.scene for pair in some], "quality")


def write_pairs() -> None:
    """Write the list that a reader, and a test, can hold against what is drawn."""
    with PAIRS.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("set", "pair", "seed", "prompt"))
        for name in SETS:
            rows.writerows((name, pair.number, pair.seed, pair.prompt) for pair in pairs(name))
