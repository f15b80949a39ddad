"""Step caches on the winner: from mild to bold while pictures pass, by whole requests alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from registry.plan import FirstBlockCache, Plan, StepCache, TaylorSeerCache
from registry.record import FailureKind, Rung, Trial
from tests.tuner.landscape import (
    GB,
    STEPS,
    WORKLOAD,
    estimate,
    make_plan,
    measurement,
    quality,
    trial,
)
from tuner.candidate import Candidate
from tuner.choices import STEP_CACHES
from tuner.search import Known, Search
from tuner.search.ladder import Verdict, distinct, next_step_cache, whole_steps
from tuner.search.parts import Parts, StepCaches

FIRST_BLOCK, TAYLOR = STEP_CACHES
BASE, FAST = make_plan(), make_plan("float8_dynamic_row", "regional", "_native_cudnn")
GOOD, BAD = quality(24.0), quality(8.0)


def tried(ladder: tuple[StepCache, ...], boldest: int) -> list[int]:
    """Places that bisection looks at where this many of the mildest pass."""
    seen: dict[StepCache, Verdict] = {}
    order = []
    while (cache := next_step_cache([ladder], lambda c: seen.get(c, "untried"))) is not None:
        order.append(ladder.index(cache))
        seen[cache] = "admitted" if ladder.index(cache) < boldest else "refused"
    return order


@pytest.mark.parametrize("boldest", range(6))
def test_the_boldest_that_passes_is_found_in_three_trials(boldest: int) -> None:
    order = tried(FIRST_BLOCK, boldest)
    assert len(order) <= 3
    assert boldest == 0 or boldest - 1 in order
    assert boldest == 5 or boldest in order


@pytest.mark.parametrize(
    ("steps", "intervals"), [(3, ()), (4, (2,)), (6, (2,)), (8, (2, 3, 4)), (20, (2, 3, 4, 5, 6))]
)
def test_caches_that_leave_out_the_same_steps_are_one(
    steps: int, intervals: tuple[int, ...]
) -> None:
    kept = distinct(TAYLOR, steps)
    assert kept == tuple(TaylorSeerCache(interval_steps=value) for value in intervals)
    assert distinct(FIRST_BLOCK, steps) == FIRST_BLOCK


@pytest.mark.parametrize(("interval", "whole"), [(2, 11), (3, 9), (4, 7), (6, 6), (10, 5)])
def test_so_many_steps_are_whole(interval: int, whole: int) -> None:
    """As `benchmarks.quality caches` counted them in calls of the denoiser, 20 steps a picture."""
    assert len(whole_steps(TaylorSeerCache(interval_steps=interval), 20)) == whole


def test_a_useless_kind_is_given_up() -> None:
    seen: dict[StepCache, Verdict] = {FIRST_BLOCK[2]: "useless"}
    found = next_step_cache(STEP_CACHES, lambda cache: seen.get(cache, "untried"))
    assert found == TAYLOR[2]


@dataclass
class World:
    """What a worker would answer: steps that a cache leaves out take no time. `passing` of each
    ladder have a good picture; `failing` kinds end otherwise."""

    passing: int
    share: float = 0.1
    failing: dict[str, FailureKind] = field(default_factory=dict)
    ran: list[tuple[Rung, Plan]] = field(default_factory=list)

    def drive(self, search: Search) -> None:
        while (proposal := search.ask()) is not None:
            self.ran.append((proposal.rung, proposal.plan))
            search.tell(self.answer(len(self.ran), proposal.rung, proposal.plan))

    def answer(self, number: int, rung: Rung, plan: Plan) -> Trial:
        """Of the trial of this number."""
        cache, after_s = plan.pipeline.step_cache, 100.0 * number
        if cache is not None and cache.kind in self.failing:
            return trial(rung, plan, failure=self.failing[cache.kind], after_s=after_s)
        step_ms = 100.0 * (1.0 - self.share * (place(cache) + 1))
        verdict = None if rung == "denoiser" else GOOD if place(cache) < self.passing else BAD
        found = measurement(rung, step_ms)
        return trial(rung, plan, measured=found, verdict=verdict, after_s=after_s)

    def caches(self, rung: str) -> list[StepCache]:
        found = (plan.pipeline.step_cache for own, plan in self.ran if own == rung)
        return [cache for cache in found if cache is not None]


def place(cache: StepCache | None) -> int:
    return -1 if cache is None else next(x.index(cache) for x in STEP_CACHES if cache in x)


def make_search(step_caches: StepCaches | None = None, first: tuple[Known, ...] = ()) -> Search:
    search = Search(
        [Candidate(FAST, estimate(100.0, 10 * GB))],
        objective="latency",
        workload=WORKLOAD,
        steps=STEPS,
        denoiser="transformer",
        reference=Candidate(BASE, estimate(175.0, 30 * GB)),
        parts=Parts(step_caches=step_caches or StepCaches(STEP_CACHES)),
        first=first,
    )
    search.tell(trial("pipeline", BASE, measured=measurement("pipeline", 175.0)))
    return search


def test_the_boldest_cache_that_passes_wins_and_the_plan_without_stands_beside_it() -> None:
    world, search = World(passing=4), make_search()
    world.drive(search)
    assert world.caches("denoiser") == []
    assert world.caches("pipeline") == [FIRST_BLOCK[2], *FIRST_BLOCK[3:], *TAYLOR[2:]]
    assert world.caches("replay") == [FIRST_BLOCK[3]]
    best, plain = search.proven()
    assert best.plan == FAST.caching_steps(FIRST_BLOCK[3])
    assert plain.plan == FAST
    assert best.estimate.source == "roofline, every step computed"
    order = [rung for rung, plan in world.ran if plan == FAST]
    assert order == ["denoiser", "pipeline", "replay"]
    assert search.in_doubt() == ()


def test_where_no_cache_passes_nothing_milder_than_useless_is_tried() -> None:
    world, search = World(passing=0), make_search()
    world.drive(search)
    assert [item.plan for item in search.proven()] == [FAST]
    assert world.caches("pipeline") == [
        *(FIRST_BLOCK[2], FIRST_BLOCK[0]),
        *(TAYLOR[2], TAYLOR[0]),
    ]
    slow, search = World(passing=0, share=0.0), make_search()
    slow.drive(search)
    assert slow.caches("pipeline") == [FIRST_BLOCK[2], TAYLOR[2]]


def test_a_cache_that_gains_nothing_is_not_published() -> None:
    world, search = World(passing=5, share=0.0), make_search()
    world.drive(search)
    assert [item.plan for item in search.proven()] == [FAST]


def test_a_failing_kind_costs_one_trial_and_blames_no_other_plan() -> None:
    world = World(passing=5, failing={"first_block": "out_of_memory", "taylorseer": "error"})
    search = make_search()
    world.drive(search)
    assert world.caches("pipeline") == [FIRST_BLOCK[2], TAYLOR[2]]
    assert [item.plan for item in search.proven()] == [FAST]


def test_without_step_caches_and_where_rules_forbid_them_none_is_tried() -> None:
    for given in (StepCaches(), StepCaches(STEP_CACHES, lambda _: False)):
        world, search = World(passing=5), make_search(given)
        world.drive(search)
        assert {plan.pipeline.step_cache for _, plan in world.ran} == {None}


def test_a_study_that_was_killed_goes_on_from_what_it_tried() -> None:
    world, search = World(passing=4), make_search()
    world.drive(search)
    again = make_search()
    for number, (rung, plan) in enumerate(world.ran[:5], start=1):
        again.tell(world.answer(number, rung, plan))
    rest = World(passing=4, ran=world.ran[:5])
    rest.drive(again)
    assert rest.ran == world.ran
    assert again.proven()[0].plan == search.proven()[0].plan


def test_a_new_search_begins_where_an_earlier_one_ended() -> None:
    """The plan without its cache is measured first, then the cache that won; of the bolder ones
    it is enough that the next is refused."""
    won = FAST.caching_steps(FIRST_BLOCK[3])
    world, search = World(passing=4), make_search(first=(Known(won, 60.0),))
    world.drive(search)
    assert world.ran[0] == ("pipeline", FAST)
    assert world.caches("pipeline")[:2] == [FIRST_BLOCK[3], FIRST_BLOCK[4]]
    assert search.proven()[0].plan == won


def test_ladders_go_from_mild_to_bold() -> None:
    thresholds = [item.threshold for item in FIRST_BLOCK if isinstance(item, FirstBlockCache)]
    intervals = [item.interval_steps for item in TAYLOR if isinstance(item, TaylorSeerCache)]
    assert len(thresholds) == len(intervals) == 5
    assert thresholds == sorted(thresholds)
    assert intervals == sorted(intervals)
