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
    """Whether the challenger beats the incumbent by more than the spread of either's samples.

    Raises ValueError where one of them was never timed.
    """
    if not incumbent or not challenger:
        raise ValueError("a plan that was never timed can neither win nor lose")
    apart = _mean_log(challenger) - _mean_log(incumbent)
    if abs(apart) > math.log(CLOSE):
        return "won" if apart < 0 else "lost"
    spread = max(item.score.spread_s / item.score.value_s for item in (*incumbent, *challenger))
    after, before = _differences(incumbent, challenger)
    orders = [fmean(found) for found in (after, before) if found]
    if all(difference >= -spread for difference in orders):
        return "lost"
    return "won" if len(orders) == 2 and max(orders) < -spread else "open"


def _differences(
    incumbent: Sequence[Timing], challenger: Sequence[Timing]
) -> tuple[list[float], list[float]]:
    """Logarithms of challenger over incumbent, of trials next to each other: where the challenger
    ran after, and where it ran before."""
    found: tuple[list[float], list[float]] = ([], [])
    marked = [*((item, False) for item in incumbent), *((item, True) for item in challenger)]
    in_order = sorted(marked, key=lambda item: (item[0].at, item[1]))
    for (first, first_is_new), (second, second_is_new) in pairwise(in_order):
        if first_is_new != second_is_new:
            difference = math.log(second.score.value_s / first.score.value_s)
            found[first_is_new].append(-difference if first_is_new else difference)
    return found


def _mean_log(timings: Sequence[Timing]) -> float:
    return fmean(_logs(timings))


def _logs(timings: Sequence[Timing]) -> Iterator[float]:
    return (math.log(item.score.value_s) for item in timings)
