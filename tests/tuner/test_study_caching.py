"""Whole studies of a model with trained weights, whose winner is tried with step caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.record import Policy, TuningRecord
from registry.workload import Workload
from tests.tuner.study_bench import GB, SQUARE, StudyBench
from tuner.matching import Request
from tuner.models import resolve_model
from tuner.planning import Planning
from tuner.report.fronts import front_rows
from tuner.request import StudyOutcome
from tuner.resolve import Answer, resolve
from tuner.search import Known

SHAPES = resolve_model("shapes-flux")


def made(root: Path) -> StudyBench:
    """First-block caches halve a request, Taylor series lose the picture."""
    bench = StudyBench(root)
    bench.rule({"slower": 0.5}, step_cache="first_block")
    bench.rule({"slower": 0.4, "sqnr_db": 3.0}, step_cache="taylorseer")
    return bench


@dataclass(frozen=True)
class Done:
    bench: StudyBench
    outcome: StudyOutcome
    best: TuningRecord


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    bench = made(tmp_path_factory.mktemp("study"))
    outcome = bench.run(model=SHAPES)
    assert outcome.best is not None
    return Done(bench, outcome, outcome.best)


def answer(done: Done, policy: Policy) -> Answer:
    request = Request(
        model=SHAPES.ref,
        workload=Workload(shapes=(SQUARE,)),
        budget_bytes=2 * GB,
        policy=policy,
        architecture=done.best.key.architecture,
        weights=done.best.key.weights,
    )
    stored = done.bench.registry.candidates(architecture=done.best.key.architecture)
    return resolve(request, stored, done.bench.environment, None)


def test_a_cached_plan_is_proved_replayed_and_published_beside_the_plain_one(done: Done) -> None:
    cache, trials = done.best.plan.pipeline.step_cache, done.bench.trials
    assert cache is not None
    assert cache.kind == "first_block"
    plain = done.best.plan.caching_steps(None)
    published = {done.bench.registry.record(name).record.plan for name in done.outcome.published}
    assert {done.best.plan, plain} <= published
    replayed = [trial.plan for trial in trials if trial.rung == "replay"]
    assert replayed.count(done.best.plan) == 1
    assert done.best.artifacts
    assert done.best.estimate.source.endswith(", every step computed")
    steps_alone = (trial.plan for trial in trials if trial.rung == "denoiser")
    assert not any(plan.pipeline.step_cache for plan in steps_alone)


def test_an_answer_says_that_steps_are_left_out_and_strict_gets_none(done: Done) -> None:
    given = answer(done, "balanced")
    assert given.plan == done.best.plan
    assert any("does not compute every step" in note for note in given.notes)
    assert answer(done, "strict").plan == done.best.plan.caching_steps(None)


def test_the_front_is_kept_with_the_study(done: Done) -> None:
    front, kept = done.outcome.front, done.bench.study().summary
    fastest, *_, nearest = front
    assert "taylorseer" in fastest.label
    assert (fastest.passed, fastest.published) == (False, False)
    assert nearest.quality_db is None
    assert [place.latency_s for place in front] == sorted(place.latency_s for place in front)
    rows = list(front_rows(kept or {}))
    assert [row[0] for row in rows] == [place.label for place in front]
    assert "published" in {row[-1] for row in rows}


@pytest.mark.parametrize(
    "wish", [{"policy": "strict"}, {"step_cache": False}, {"model": resolve_model("tiny-flux")}]
)
def test_no_cache_is_tried_where_it_means_nothing_or_is_not_wanted(
    tmp_path: Path, wish: dict[str, Any]
) -> None:
    bench = StudyBench(tmp_path)
    for request, expected in (
        (bench.request(**{"model": SHAPES, **wish}), False),
        (bench.request(model=SHAPES), True),
    ):
        assert Planning(request, bench.inventory, bench.environment).caches_steps is expected


def test_random_weights_are_not_cached_and_that_is_said(tmp_path: Path) -> None:
    bench = made(tmp_path)
    outcome = bench.run()
    assert not any(trial.plan.pipeline.step_cache for trial in bench.trials)
    assert outcome.notes[-1].startswith("no step cache was tried: with random weights")


def test_a_new_study_begins_with_what_an_earlier_one_proved(done: Done, tmp_path: Path) -> None:
    again = made(tmp_path)
    known = Known(done.best.plan, done.best.measurement.step_ms)
    outcome = again.run(model=SHAPES, first=(known,))
    tried = [trial.plan for trial in again.trials if trial.rung == "pipeline"]
    assert tried[1:3] == [done.best.plan.caching_steps(None), done.best.plan]
    assert outcome.best is not None
    assert outcome.best.plan == done.best.plan
