"""Which of two plans is faster, when the machine may have changed between their trials.

Clocks sink as a device warms, and neighbours come and go: plans timed an hour apart differ by that
too. So a challenger must be faster both where it ran after the incumbent and where it ran before
it. A drift in one direction helps it in one of the two orders alone: however large, it cannot crown
the slower plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import fmean
from typing import Literal

from tuner.objective import Score

CLOSE = 1.10
"""Plans farther apart than this are told apart by any trials: machines drift by less."""

Verdict = Literal["won", "lost", "open"]
"""Of a challenger. "open": the orders contradict each other, or one was not tried yet."""


@dataclass(frozen=True)
class Timing:
    """One trial's score and when it began."""

    at: datetime
    score: Score


def challenge(incumbent: Sequence[Timing], challenger: Sequence[Timing]) -> Verdict:
    """Whether the challenger beats the incumbent by more than the spread of the samples compared.
    Each order is held to its own trials' spread: one that was disturbed leaves its order open, and
    does not take from what calmer trials tell in the other.

    Raises ValueError where one of them was never timed.
    """
    if not incumbent or not challenger:
        raise ValueError("a plan that was never timed can neither win nor lose")
    apart = _mean_log(challenger) - _mean_log(incumbent)
    if abs(apart) > math.log(CLOSE):
        return "won" if apart < 0 else "lost"
    after, before = _differences(incumbent, challenger)
    faster = [_is_faster(found) for found in (after, before) if found]
    if not any(faster):
        return "lost"
    return "won" if len(faster) == 2 and all(faster) else "open"


def _is_faster(differences: Sequence[_Difference]) -> bool:
    spread = max(item.spread for item in differences)
    return fmean(item.logarithm for item in differences) < -spread


@dataclass(frozen=True)
class _Difference:
    """Of two trials next to each other: the logarithm of challenger over incumbent, and the larger
    of their relative spreads."""

    logarithm: float
    spread: float


def _differences(
    incumbent: Sequence[Timing], challenger: Sequence[Timing]
) -> tuple[list[_Difference], list[_Difference]]:
    """Where the challenger ran after, and where it ran before."""
    found: tuple[list[_Difference], list[_Difference]] = ([], [])
    marked = [*((item, False) for item in incumbent), *((item, True) for item in challenger)]
    in_order = sorted(marked, key=lambda item: (item[0].at, item[1]))
    for (first, first_is_new), (second, second_is_new) in pairwise(in_order):
        if first_is_new != second_is_new:
            logarithm = math.log(second.score.value_s / first.score.value_s)
            spread = max(_spread(first), _spread(second))
            signed = -logarithm if first_is_new else logarithm
            found[first_is_new].append(_Difference(signed, spread))
    return found


def _spread(timing: Timing) -> float:
    return timing.score.spread_s / timing.score.value_s


def _mean_log(timings: Sequence[Timing]) -> float:
    return fmean(_logs(timings))


def _logs(timings: Sequence[Timing]) -> Iterator[float]:
    return (math.log(item.score.value_s) for item in timings)
