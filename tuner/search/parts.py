"""What a search is made of, so that a benchmark can leave a part out and see what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from registry.plan import Plan
from tuner.choices import Ladder
from tuner.search.entry import Entry
from tuner.search.ledger import Ledger
from tuner.search.setbacks import Setbacks
from tuner.search.surrogate import ErrorModel, Prediction, Sample

Stage = Literal[
    "measure_first",
    "probe",
    "prove_first",
    "explore",
    "prove",
    "replay_winner",
    "cache_steps",
    "replay_cached",
    "replay_others",
    "settle",
    "last_chance",
    "widen",
    "every_denoiser",
    "every_pipeline",
]
ANYTIME: tuple[Stage, ...] = (
    *("measure_first", "probe", "prove_first", "explore", "prove", "replay_winner", "cache_steps"),
    *("replay_cached", "replay_others", "settle", "last_chance", "widen"),
)
EXHAUSTIVE: tuple[Stage, ...] = (
    *("every_denoiser", "every_pipeline", "prove", "replay_winner", "cache_steps"),
    *("replay_cached", "replay_others", "settle"),
)
"""Stages in the order in which they are asked; the first that proposes a trial has its way."""


class Errors(Protocol):
    """How wrong estimates are, by the choices of a plan."""

    def predict(self, choices: frozenset[str]) -> Prediction: ...


def _any(_: Plan) -> bool:
    return True


@dataclass(frozen=True)
class StepCaches:
    """What the winner is tried with: `ladders` of each kind from mild to bold, where `allowed` says
    so of the plan."""

    ladders: tuple[Ladder, ...] = ()
    allowed: Callable[[Plan], bool] = _any


@dataclass(frozen=True)
class Parts:
    """`errors` learns from the trials so far, `setbacks` from those that failed. `by_time` weighs
    what a trial promises by how long it takes. `stages` None are all of them; `step_caches` none
    unless they are given."""

    errors: Callable[[Sequence[Sample]], Errors] = ErrorModel
    setbacks: Callable[[Ledger, Mapping[str, Entry], frozenset[str]], Setbacks] = Setbacks
    by_time: bool = True
    stages: tuple[Stage, ...] | None = None
    step_caches: StepCaches = StepCaches()


WHOLE = Parts()
