"""What a study dropped unmeasured, tried all the same: was it right to?

Pure: which candidates are looked at, and what their trials say of the prediction that dropped them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from registry.plan import Plan
from registry.record import Estimate, Measurement, Trial, TuningRecord
from tuner.objective import Judge, Score

Stratum = Literal["memory", "host_memory", "dominated", "useless", "outbid", "given_up"]
STRATA: Mapping[Stratum, str] = {
    "memory": "predicted not to fit on the device",
    "host_memory": "predicted not to fit on the host",
    "dominated": "another was predicted faster and no larger",
    "useless": "a rule says that it never wins",
    "outbid": "could not win, or gain too little, by what trials showed",
    "given_up": "a choice of it had failed in other trials",
}
Verdict = Literal["faster", "smaller", "right"]
"""Of a drop. "faster" and "smaller" are false: it would have beaten the best that was published, or
no plan that the study proved is as good in memory and time at once."""

SAME_MEMORY = 1.10
SAME_BYTES = 100_000_000
SAME_TIME = 1.02
"""How much better a plan must be in one of these to count: as among finalists, and in memory by no
less than 100 MB. How soon it starts is left out, since nothing is dropped for that."""

Place = tuple[float, float, float]
"""Device peak in bytes, host peak in bytes, and the objective in seconds."""


@dataclass(frozen=True)
class Suspect:
    """A candidate that was dropped, with the prediction it was dropped by."""

    plan: Plan
    estimate: Estimate
    stratum: Stratum
    reason: str

    @property
    def told(self) -> str:
        """What its trials say they were dropped for."""
        return f"{self.stratum}: {self.reason}"


@dataclass(frozen=True)
class Bar:
    """What a dropped plan must pass: the `best` published, and the `proved` plans' places."""

    judge: Judge
    best: Score
    proved: tuple[Place, ...]

    def verdict(self, measured: Measurement, score: Score) -> Verdict:
        if score.beats(self.best):
            return "faster"
        own = place_of(measured, score)
        return "right" if any(_covers(place, own) for place in self.proved) else "smaller"

    def is_promising(self, trial: Trial, estimate: Estimate) -> bool:
        """Whether a denoiser trial leaves room for a false drop, so that whole requests are run."""
        if trial.measurement is None or _rejected(trial):
            return False
        score = self.judge.projected(trial.measurement, estimate)
        return self.verdict(trial.measurement, score) != "right"

    def of_whole(self, trial: Trial) -> Verdict:
        """Of a trial at the pipeline rung; what failed or was rejected was rightly dropped."""
        if trial.measurement is None or trial.quality is None or _rejected(trial):
            return "right"
        score = self.judge.measured(trial.measurement)
        return "right" if score is None else self.verdict(trial.measurement, score)


def place_of(measured: Measurement, score: Score) -> Place:
    memory = measured.memory
    return (float(memory.peak_vram_bytes), float(memory.host_peak_bytes), score.value_s)


def bar_of(judge: Judge, best: TuningRecord, trials: Iterable[Trial], reference: str) -> Bar:
    """The bar that a study's own trials set, and the best of what it published. `reference` is the
    digest of the plan that needs no verdict on its picture."""
    score = judge.measured(best.measurement) or judge.projected(best.measurement, best.estimate)
    places = []
    for trial in trials:
        accepted = trial.quality.passed if trial.quality else trial.plan.digest == reference
        if trial.rung == "pipeline" and trial.measurement is not None and accepted:
            own = judge.measured(trial.measurement)
            places += [place_of(trial.measurement, own)] if own else []
    return Bar(judge, score, tuple(places))


def sample(pool: Iterable[Suspect], count: int, seed: str) -> tuple[Suspect, ...]:
    """The first `count` of a fixed order: each stratum in turn, shuffled inside. More of the same
    pool and seed begin with the same ones."""
    strata: dict[Stratum, list[Suspect]] = {name: [] for name in STRATA}
    for suspect in pool:
        strata[suspect.stratum].append(suspect)
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    for found in strata.values():
        found.sort(key=lambda suspect: suspect.plan.digest)
        chance.shuffle(found)
    order = [
        found[turn]
        for turn in range(max(map(len, strata.values()), default=0))
        for found in strata.values()
        if turn < len(found)
    ]
    return tuple(order[:count])


@dataclass(frozen=True)
class FalseDrop:
    """A plan that should have been tried. `score_s` is the objective's."""

    plan: str
    label: str
    verdict: Verdict
    stratum: Stratum
    reason: str
    score_s: float
    peak_vram_bytes: int


@dataclass(frozen=True)
class StratumCount:
    """How many were dropped so, how many of them were tried, and what came of it. `fitted` ran to
    the end of their trials within the budget."""

    dropped: int
    tried: int = 0
    fitted: int = 0
    faster: int = 0
    smaller: int = 0


@dataclass(frozen=True)
class FalseTries:
    """Of the `tried` plans of the search, the baseline's apart: those that ran out of memory though
    predicted to fit, that were predicted to beat the best published and did not, and that failed
    otherwise."""

    tried: int = 0
    did_not_fit: int = 0
    did_not_win: int = 0
    failed: int = 0


@dataclass(frozen=True)
class AuditReport:
    """`complete` is False while trials that were asked for are missing."""

    asked: int
    complete: bool
    strata: Mapping[str, StratumCount]
    false_drops: tuple[FalseDrop, ...]
    false_tries: FalseTries

    @property
    def tried(self) -> int:
        return sum(item.tried for item in self.strata.values())

    def as_json(self) -> dict[str, Any]:
        """As a study's summary gives it back."""
        return {**asdict(self), "false_drops": [asdict(item) for item in self.false_drops]}


def false_tries(trials: Iterable[Trial], reference: str, budget_bytes: int, bar: Bar) -> FalseTries:
    """Each plan counts once, by the first of its trials that is wrong."""
    ended: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.plan.digest != reference and trial.rung != "replay":
            ended.setdefault(trial.plan.digest, []).append(trial)
    wrong = [_why_false(found, budget_bytes, bar) for found in ended.values()]
    return FalseTries(
        tried=len(ended),
        did_not_fit=wrong.count("memory"),
        did_not_win=wrong.count("slower"),
        failed=wrong.count("failed"),
    )


def _why_false(trials: Sequence[Trial], budget_bytes: int, bar: Bar) -> str | None:
    for trial in trials:
        guess = trial.estimate
        if trial.failure is not None or _rejected(trial):
            out = trial.failure is not None and trial.failure.kind == "out_of_memory"
            if out and guess is not None and guess.peak_vram_bytes > budget_bytes:
                return None
            return "memory" if out else "failed"
    return "slower" if any(_promised_more(trial, bar) for trial in trials) else None


def _promised_more(trial: Trial, bar: Bar) -> bool:
    guess, measured = trial.estimate, trial.measurement
    if guess is None or measured is None:
        return False
    promised_s = bar.judge.estimated(trial.plan, guess)
    score = bar.judge.measured(measured) or bar.judge.projected(measured, guess)
    return promised_s < bar.best.value_s and bar.best.beats(score)


def _rejected(trial: Trial) -> bool:
    return trial.quality is not None and not trial.quality.passed


def _covers(place: Place, other: Place) -> bool:
    *ours, our_s = place
    *theirs, their_s = other
    no_more = (
        own <= max(known * SAME_MEMORY, known + SAME_BYTES)
        for own, known in zip(ours, theirs, strict=True)
    )
    return our_s <= their_s * SAME_TIME and all(no_more)
