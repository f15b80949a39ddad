"""The duel of two finalists on machines that get slower, faster, or both."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tuner.objective import Score
from tuner.search.duel import CLOSE, Timing, challenge

START = datetime(2026, 1, 1, tzinfo=UTC)
Drift = Callable[[float], float]
"""How much slower the machine is at a moment from 0 to 1."""


def timings(
    true_s: float, moments: Sequence[float], drift: Drift = lambda _: 1.0, *, spread: float = 0.0
) -> list[Timing]:
    def at(moment: float) -> Timing:
        seconds = true_s * drift(moment)
        return Timing(START + timedelta(hours=moment), Score(seconds, spread * seconds))

    return [at(moment) for moment in moments]


def one_way(chance: random.Random, size: float) -> Drift:
    """Some steps and a slope of `size` in all, all slower or all faster."""
    steps = [(chance.random(), chance.random()) for _ in range(chance.randint(0, 3))]
    total = sum(height for _, height in steps) + 1.0
    sign = chance.choice((-1.0, 1.0))

    def drift(moment: float) -> float:
        passed = moment + sum(height for at, height in steps if at <= moment)
        return 1.0 + sign * size * passed / total

    return drift


@pytest.mark.parametrize("order", ["ABBA", "ABAB", "ABA", "AB", "ABABA"])
def test_no_drift_in_one_direction_crowns_the_slower_plan(order: str) -> None:
    chance = random.Random(order)
    for _ in range(300):
        drift = one_way(chance, 0.05)
        moments = sorted(chance.random() for _ in order)
        slower_s = 1.0 + chance.uniform(0.0, 0.04)
        at = {name: [m for m, n in zip(moments, order, strict=True) if n == name] for name in "AB"}
        incumbent = timings(1.0, at["A"], drift)
        challenger = timings(slower_s, at["B"], drift)
        assert challenge(incumbent, challenger) != "won"


def test_the_last_measurement_alone_would_have_crowned_it() -> None:
    """What the rule is there for: the machine got 5% faster between two trials."""
    machine: Drift = lambda moment: 1.0 if moment < 0.5 else 0.95  # noqa: E731
    incumbent = timings(1.0, [0.1], machine)
    challenger = timings(1.03, [0.6], machine)
    assert challenger[0].score.beats(incumbent[0].score)
    assert challenge(incumbent, challenger) == "open"
    assert challenge([*incumbent, *timings(1.0, [0.9], machine)], challenger) == "open"
    both = timings(1.03, [0.6, 0.7], machine)
    assert challenge([*incumbent, *timings(1.0, [0.9], machine)], both) != "won"


def test_a_faster_plan_wins_in_both_orders() -> None:
    assert challenge(timings(1.0, [0.0, 0.9]), timings(0.97, [0.3, 0.6])) == "won"
    assert challenge(timings(1.0, [0.0, 0.6]), timings(0.97, [0.3])) == "won"


def test_a_faster_plan_wins_through_a_drift_smaller_than_its_lead() -> None:
    slope: Drift = lambda moment: 1.0 + 0.05 * moment  # noqa: E731
    assert challenge(timings(1.0, [0.0, 0.9], slope), timings(0.95, [0.3, 0.6], slope)) == "won"


def test_one_order_alone_leaves_it_open() -> None:
    assert challenge(timings(1.0, [0.0]), timings(0.97, [0.5])) == "open"
    assert challenge(timings(1.0, [0.5]), timings(0.97, [0.0])) == "open"


def test_a_lead_within_the_spread_is_none() -> None:
    incumbent = timings(1.0, [0.0, 0.9], spread=0.05)
    assert challenge(incumbent, timings(0.97, [0.3, 0.6])) == "lost"
    assert challenge(timings(1.0, [0.0, 0.9]), timings(0.97, [0.3, 0.6], spread=0.05)) == "lost"
    assert challenge(incumbent, timings(0.93, [0.3, 0.6])) == "won"


def test_equal_plans_leave_the_incumbent() -> None:
    assert challenge(timings(1.0, [0.0]), timings(1.0, [0.5])) == "lost"


def test_orders_that_contradict_each_other_are_open() -> None:
    """The machine got slower: the incumbent ran while it was fast."""
    machine: Drift = lambda moment: 1.0 if moment < 0.2 else 1.05  # noqa: E731
    assert challenge(timings(1.0, [0.0, 0.9], machine), timings(0.97, [0.5], machine)) == "open"
    settled = challenge(timings(1.0, [0.0, 0.8], machine), timings(0.97, [0.5, 0.9], machine))
    assert settled == "won"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0 / CLOSE, "won"), (CLOSE, "lost")])
def test_far_apart_any_trials_tell(ratio: float, verdict: str) -> None:
    beyond = ratio * math.exp(math.copysign(0.001, math.log(ratio)))
    assert challenge(timings(1.0, [0.0]), timings(beyond, [0.5])) == verdict
    assert challenge(timings(1.0, [0.5]), timings(beyond, [0.0])) == verdict


def test_it_takes_two() -> None:
    with pytest.raises(ValueError, match="never timed"):
        challenge(timings(1.0, [0.0]), [])


def test_a_disturbed_trial_takes_nothing_from_calm_ones() -> None:
    """FLUX within 8 GB on an H200: the incumbent's first trial scattered by 6%, and the plan that
    was 5 to 8% faster in both orders was not believed."""
    incumbent = [*timings(5.316, [0.0], spread=0.062), *timings(5.138, [0.9], spread=0.003)]
    challenger = timings(4.89, [0.5, 0.6], spread=0.005)
    assert challenge(incumbent, challenger) == "won"
    assert challenge(timings(5.138, [0.0], spread=0.062), challenger) == "lost"
