"""Which plans are recorded: all of them in the end, and a bit of everything early on."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.sampling import Choice, distinct, in_order, shard
from tests.tuner import flux
from tuner.cost_model import CostModel
from tuner.search.features import denoiser_features
from tuner.shapes import workload_of
from tuner.space import survey

DENOISER = "transformer"


@cache
def choices() -> tuple[Choice, ...]:
    """One for each denoiser of FLUX.1-dev in 80 GB."""
    inventory, environment = flux.shipped("flux-dev"), flux.h200()
    found = survey(
        inventory,
        environment,
        workload_of([(1024, 1024)], [1]),
        80 * 10**9,
        None,
        CostModel(inventory, environment.hardware),
    )
    return distinct([Choice(item) for item in found.kept], "denoiser", DENOISER)


def values(chosen: tuple[Choice, ...]) -> set[str]:
    return set().union(*(denoiser_features(choice.plan, DENOISER) for choice in chosen))


def test_each_denoiser_is_there_once() -> None:
    ordered = in_order(choices(), "denoiser", DENOISER, seed=0)
    digests = [choice.plan.digest for choice in ordered]
    assert sorted(digests) == sorted(choice.plan.digest for choice in choices())


def test_the_order_follows_from_the_seed() -> None:
    once, again, other = (
        in_order(choices(), "denoiser", DENOISER, seed=seed, limit=40) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other
    assert len(once) == 40


def test_a_fifth_of_them_covers_every_value_of_quick_plans() -> None:
    quick = tuple(
        choice
        for choice in choices()
        if not choice.is_slow
        and choice.plan.pipeline.component(DENOISER).placement.kind == "resident"
    )
    ordered = in_order(quick, "denoiser", DENOISER, seed=0)
    assert values(ordered[: len(quick) // 5]) == values(quick)


def test_the_best_predicted_are_among_the_first() -> None:
    quick = [choice for choice in choices() if not choice.is_slow]
    best = sorted(quick, key=lambda choice: choice.candidate.estimate.latency_s)[:8]
    first = in_order(choices(), "denoiser", DENOISER, seed=0, limit=40)
    assert {choice.plan.digest for choice in best} <= {choice.plan.digest for choice in first}


@pytest.mark.parametrize("every", [4, 12])
def test_plans_that_compile_for_long_come_now_and_then(every: int) -> None:
    ordered = in_order(choices(), "denoiser", DENOISER, seed=0, limit=48, slow_every=every)
    slow = [place for place, choice in enumerate(ordered) if choice.is_slow]
    assert slow == list(range(every - 1, 48, every))


def test_shards_share_the_work_evenly() -> None:
    ordered = in_order(choices(), "denoiser", DENOISER, seed=0, limit=100)
    parts = [shard(ordered, index, 4) for index in range(4)]
    digests = [choice.plan.digest for part in parts for choice in part]
    assert sorted(digests) == sorted(choice.plan.digest for choice in ordered)
    seconds = [sum(choice.expected_s for choice in part) for part in parts]
    assert max(seconds) - min(seconds) <= max(choice.expected_s for choice in ordered)
    assert all(values(part) >= values(ordered[:8]) for part in parts)


def test_no_choices_are_no_order() -> None:
    assert in_order((), "denoiser", DENOISER, seed=0) == ()
