"""What a search answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from registry.plan import Plan
from registry.record import Estimate, Rung, Trial


@dataclass(frozen=True)
class Known:
    """A plan that an earlier search of the same question proved, and how fast it was then."""

    plan: Plan
    step_ms: float


@dataclass(frozen=True)
class Proposal:
    """The trial to run next. `limit_s` is how long it may take without costing the time reserved
    for proving the best plan; None without a time limit."""

    rung: Rung
    plan: Plan
    estimate: Estimate
    reason: str
    limit_s: float | None


UntriedKind = Literal["outbid", "given_up", "no_time"]
"""Why a candidate was not tried: by what was measured it could not win or gain too little, a
choice of it had failed, or the time was over before its turn."""


@dataclass(frozen=True)
class Untried:
    """A candidate that nothing was measured of, and why."""

    plan: Plan
    estimate: Estimate
    reason: str
    kind: UntriedKind


@dataclass(frozen=True)
class Standing:
    """The best plan known, and the highest rung that says so. `score_s` is the objective's."""

    plan: Plan
    rung: Rung
    score_s: float


@dataclass(frozen=True)
class Proven:
    """What may be published: it passed the gate and was replayed."""

    plan: Plan
    estimate: Estimate
    trial: Trial
    replay: Trial
    score_s: float
