"""Rows as the gate's own scores, and its verdict on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.pairs import Pair, SetName, pairs
from benchmarks.quality.rows import Row, path_of, read
from registry.record import Policy, QualityScore
from registry.workload import Shape
from tuner.gate import judge
from tuner.policies import Metric

YARDSTICK = "other_seed"
SHAPE = Shape(height=128, width=128)
CALIBRATED_METRICS: tuple[Metric, ...] = ("sqnr_db", "embedding_sqnr_db", "psnr_gain_db")


@dataclass(frozen=True)
class Results:
    """One set's rows by treatment, in the order of its pairs."""

    rows: Mapping[str, tuple[Row, ...]]
    pairs: tuple[Pair, ...]

    def values(self, treatment: str, metric: Metric) -> list[float]:
        """One for each picture whose numbers were all finite."""
        found = (self.value(row, metric) for row in self.rows.get(treatment, ()))
        return [value for value in found if value is not None]

    def fidelity(self, treatment: str) -> list[float]:
        return [row.found.fidelity for row in self.rows.get(treatment, ())]

    def value(self, row: Row, metric: Metric) -> float | None:
        """The worst of the steps for SQNR; PSNR's gain is over the other seed of the same pair."""
        found = row.found
        if metric == "sqnr_db":
            steps = [value for value in found.sqnr_db if value is not None]
            return min(steps) if len(steps) == len(found.sqnr_db) else None
        if metric == "psnr_gain_db":
            other = self.rows[YARDSTICK][row.pair].found.psnr_db
            return None if found.psnr_db is None or other is None else found.psnr_db - other
        if metric == "embedding_sqnr_db":
            return found.embedding_sqnr_db
        return found.psnr_db if metric == "psnr_db" else found.ssim

    def passes(self, some: Sequence[Row], policy: Policy) -> bool:
        """Whether a plan that drew these pictures would have passed."""
        if any(not row.found.same_schedule for row in some):
            return False
        scores = [score for row in some for score in self._scores(row)]
        return (
            None not in scores
            and judge(
                [score for score in scores if score is not None], policy, calibrated=True
            ).passed
        )

    def _scores(self, row: Row) -> Iterator[QualityScore | None]:
        pair = self.pairs[row.pair]
        metrics: tuple[Metric, ...] = (*CALIBRATED_METRICS, "psnr_db", "ssim")
        for metric in metrics:
            value = self.value(row, metric)
            yield (
                None
                if value is None
                else QualityScore(
                    metric=metric, value=value, seed=pair.seed, prompt=pair.prompt, shape=SHAPE
                )
            )


def results(name: SetName) -> Results:
    """What lies in the repository of one set."""
    found: dict[str, dict[int, Row]] = {}
    for row in read(path_of(name)):
        found.setdefault(row.treatment, {})[row.pair] = row
    ordered = {
        treatment: tuple(rows[number] for number in sorted(rows))
        for treatment, rows in found.items()
    }
    return Results(ordered, pairs(name))
