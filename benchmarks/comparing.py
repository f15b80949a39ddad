"""Contenders run over all seeds, within several time limits, and the search without its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.ablations import ABLATIONS
from benchmarks.block_timings import Foreseen
from benchmarks.contenders import Contender, Result, TunerSearch
from benchmarks.replay import Landscape
from registry.timing import Timing, TimingKey

GOOD_REGRET = 0.02
ABLATED_SHARE = 0.25


def own_searches(
    landscape: Landscape, timings: Mapping[TimingKey, Timing]
) -> tuple[TunerSearch, ...]:
    """The search with the predictions that were recorded, and where blocks of this machine were
    timed with those that follow from them, after the time that takes."""
    foreseen = Foreseen(landscape, timings)
    candidates = foreseen.candidates() if timings else None
    if candidates is None:
        return (TunerSearch(),)
    *known, reference = candidates
    informed = TunerSearch(
        "tuner, blocks timed",
        spent_s=foreseen.rung_s(),
        candidates=lambda _: known,
        reference=lambda _: reference,
    )
    return (TunerSearch(), informed)


@dataclass(frozen=True)
class Row:
    """One contender under one time limit, over all seeds. `limit` None is where the project's
    search stops by itself; the others are then given as much. Infinite is no answer."""

    name: str
    limit: float | None
    regrets: tuple[float, ...]
    shares: tuple[float, ...]
    trials: tuple[int, ...]
    proofs: tuple[int, ...]
    proved: float

    @property
    def good(self) -> float:
        """Share of the seeds with a regret that is small enough."""
        return sum(value <= GOOD_REGRET for value in self.regrets) / len(self.regrets)


@dataclass(frozen=True)
class Comparison:
    landscape: Landscape
    rows: tuple[Row, ...]


def compare(
    landscape: Landscape,
    contenders: Sequence[Contender],
    seeds: int,
    shares: Sequence[float],
) -> Comparison:
    """Every contender with the time that the first takes by itself, and within each share."""
    first = [contenders[0].run(landscape, seed, None) for seed in range(seeds)]
    own_s = [result.time_s for result in first]
    rows = [_row(landscape, contenders[0].name, None, first)]
    rows += [_runs(landscape, item, None, own_s) for item in contenders[1:]]
    for share in shares:
        limits_s = [share * landscape.exhaustive_s] * seeds
        rows += [_runs(landscape, item, share, limits_s) for item in contenders]
    return Comparison(landscape, tuple(rows))


def ablate(landscape: Landscape, seeds: int) -> Comparison:
    """The search whole, then without each of its parts: to its own end, and within a share."""
    limits_s = [ABLATED_SHARE * landscape.exhaustive_s] * seeds
    rows: list[Row] = []
    for item in (TunerSearch("nothing"), *ABLATIONS):
        ended = [item.run(landscape, seed, None) for seed in range(seeds)]
        rows.append(_row(landscape, item.name, None, ended))
        rows.append(_runs(landscape, item, ABLATED_SHARE, limits_s))
    return Comparison(landscape, tuple(rows))


def _runs(
    landscape: Landscape, contender: Contender, limit: float | None, limits_s: Sequence[float]
) -> Row:
    results = [contender.run(landscape, seed, limit_s) for seed, limit_s in enumerate(limits_s)]
    return _row(landscape, contender.name, limit, results)


def _row(landscape: Landscape, name: str, limit: float | None, results: Sequence[Result]) -> Row:
    return Row(
        name=name,
        limit=limit,
        regrets=tuple(landscape.regret(item.plan) for item in results),
        shares=tuple(item.time_s / landscape.exhaustive_s for item in results),
        trials=tuple(item.trials for item in results),
        proofs=tuple(item.proofs for item in results),
        proved=sum(item.proved for item in results) / len(results),
    )
