from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.errors import InvalidInput
from registry.plan import FirstBlockCache, GroupOffload, Plan
from registry.record import (
    Estimate,
    Failure,
    Measurement,
    PeakMemory,
    Rung,
    ShapeMeasurement,
    Trial,
)
from registry.store import Registry
from registry.workload import ModelRef, Shape, Workload
from tests.tuner.cli import example_registry as example
from tests.tuner.flux import ONE_PICTURE, REGIONAL, SQUARE, flux, h200, plan
from tests.tuner.study_bench import StudyBench
from tuner.corrections import Corrections
from tuner.cost_model import CostModel
from tuner.hold_out import held_out, merged, parse_group
from tuner.model_error import AXES, Case, grouped, spread, spreads, worst
from tuner.past_trials import past_trials
from tuner.shapes import workload_of

STEPS = 28
WIDE = workload_of([(1536, 1024)], [1])
EAGER, COMPILED = plan(), plan(compilation=REGIONAL)
STREAMED = plan(placement=GroupOffload())


def guess(chosen: Plan, workload: Workload) -> Estimate:
    return CostModel(flux(), h200().hardware).estimate(chosen, workload)


def measurement(
    estimate: Estimate, *, off: float = 1.0, rung: Rung = "pipeline", **changes: Any
) -> Measurement:
    """What a trial measures whose prediction was too low by this factor in everything."""
    shape = ShapeMeasurement(
        shape=SQUARE,
        steps=STEPS,
        step_ms=estimate.step_ms * off,
        first_call_s=1.0,
        latency_s=None if rung == "denoiser" else estimate.latency_s * off,
    )
    memory = PeakMemory(
        peak_vram_bytes=round(estimate.peak_vram_bytes * off), load_peak_vram_bytes=0
    )
    return Measurement(
        rung=rung, shapes=(shape,), memory=memory, load_s=1.0, start_s=1.0, **changes
    )


def case(
    trial: str = "a/1",
    chosen: Plan = EAGER,
    off: float = 1.0,
    workload: Workload = ONE_PICTURE,
    rung: Rung = "pipeline",
    **changes: Any,
) -> Case:
    estimate = guess(chosen, workload)
    values: dict[str, Any] = {
        "trial": trial,
        "family": "flux",
        "model": "flux-dev",
        "model_key": "flux-dev",
        "environment": h200(),
        "workload": workload,
        "plan": chosen,
        "placement": "resident",
        "estimate": estimate,
        "measurement": measurement(estimate, off=off, rung=rung),
        "default_steps": True,
    }
    return Case(**(values | changes))


INVENTORIES = {"flux-dev": flux()}


def test_an_error_is_predicted_over_measured() -> None:
    found = case(off=1.25)
    assert found.error("peak") == pytest.approx(-0.2)
    assert found.error("latency") == pytest.approx(-0.2)
    assert found.error("step") == pytest.approx(-0.2)


def test_a_denoiser_trial_shows_its_steps_alone() -> None:
    found = case(rung="denoiser")
    assert (found.error("peak"), found.error("latency")) == (None, None)
    assert found.error("step") == pytest.approx(0.0)


def test_requests_of_other_lengths_are_not_compared() -> None:
    found = case(default_steps=False)
    assert found.error("latency") is None
    assert found.error("peak") == pytest.approx(0.0)


def test_a_spread_counts_what_is_close_enough() -> None:
    errors = [0.01, -0.05, 0.06, -0.3]
    found = spread("peak", errors)
    assert (found.count, found.within) == (4, 0.5)
    assert found.median == pytest.approx(0.055)
    assert found.p95 == 0.3
    assert found.bias == pytest.approx(-0.02)
    assert spread("latency", errors).within == 0.75
    hundred = spread("peak", [n / 1000 for n in range(1, 101)])
    assert hundred.p95 == 0.095


def test_groups_are_by_each_axis() -> None:
    cases = [
        case("a/1"),
        case("a/2", STREAMED, off=2.0, placement="group_offload/leaf/stream"),
        case("b/1", workload=WIDE, model="flux-schnell"),
    ]
    assert set(grouped(cases, "resolution")) == {"1024x1024", "1536x1024"}
    assert set(grouped(cases, "model")) == {"flux-dev", "flux-schnell"}
    assert set(grouped(cases, "source")) == {"roofline"}
    by_placement = grouped(cases, "placement")
    assert by_placement["resident"]["peak"].within == 1.0
    assert by_placement["group_offload/leaf/stream"]["peak"].median == pytest.approx(0.5)
    both = workload_of([(64, 64), (128, 64)], [2])
    assert AXES["resolution"](case(workload=both)) == "64x64+128x64"
    assert AXES["batch"](case(workload=both)) == "2"


def test_the_worst_come_first_by_size_of_error() -> None:
    cases = [case("a/1", off=1.1), case("a/2", off=0.5), case("a/3"), case("a/4", rung="denoiser")]
    assert [item.trial for item, _ in worst(cases, "peak", 2)] == ["a/2", "a/1"]
    assert worst(cases, "peak", 0) == ()


def test_what_the_others_teach_is_tried_on_a_group_apart() -> None:
    """An error common to all is learned from the square pictures and mends the wide ones."""
    taught = [case(f"a/{n}", item, off=1.3) for n, item in enumerate([EAGER, COMPILED])]
    apart = [case("b/1", EAGER, off=1.3, workload=WIDE)]
    found = held_out([*taught, *apart], INVENTORIES, "resolution", "1536x1024")
    assert (found.count, found.taught_by, found.unknown) == (1, 2, 0)
    for wrong in (found.frozen, found.roofline):
        assert wrong["step"].median == pytest.approx(1 - 1 / 1.3)
        assert wrong["peak"].within == 0.0
    assert found.refitted["step"].median == pytest.approx(0.0, abs=1e-6)
    assert found.refitted["peak"].within == 1.0


def test_a_group_teaches_nothing_about_itself() -> None:
    cases = [case("a/1", EAGER, off=1.3), case("b/1", EAGER, off=3.0, workload=WIDE)]
    found = held_out(cases, INVENTORIES, "resolution", "1536x1024")
    alone = held_out(cases[1:], INVENTORIES, "resolution", "1536x1024")
    assert found.refitted["step"].bias == pytest.approx(1.3 / 3.0 - 1, rel=1e-6)
    assert alone.taught_by == 0
    assert alone.refitted == alone.roofline


def test_a_family_held_out_is_taught_by_others_of_the_same_device() -> None:
    other: dict[str, Any] = {"family": "other", "model_key": "other"}
    elsewhere = h200().model_copy(
        update={"hardware": h200().hardware.model_copy(update={"name": "another"})}
    )
    cases = [
        case("a/1", off=1.2, **other),
        case("a/2", off=9.0, environment=elsewhere, **other),
        case("b/1", off=1.2),
        case("c/1", off=1.2, model_key="a folder"),
    ]
    found = held_out(cases, {**INVENTORIES, "other": flux()}, "family", "flux")
    assert (found.count, found.unknown, found.taught_by) == (2, 1, 1)
    assert found.frozen["step"].count == 2
    assert found.refitted["step"].count == 1
    assert found.refitted["step"].median == pytest.approx(0.0, abs=1e-6)


def test_what_models_teach_together_is_weighed_by_their_trials() -> None:
    assert merged([]) == Corrections()
    one = Corrections(step_all=2.0, fixed=1.0, outside_bytes=10, trials=3)
    assert merged([one, Corrections()]) == one
    both = merged([one, Corrections(step_all=8.0, fixed=4.0, trials=1)])
    assert both.step_all == pytest.approx(2.0 ** (3 / 4) * 8.0 ** (1 / 4))
    assert (both.trials, both.outside_bytes) == (4, 10)


@pytest.mark.parametrize("text", ["resolution", "=1", "colour=red", "family="])
def test_a_group_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a group"):
        parse_group(text)


def test_a_group_without_trials_names_those_that_have_some() -> None:
    assert parse_group("device=NVIDIA H200") == ("device", "NVIDIA H200")
    with pytest.raises(InvalidInput, match="no trial has family=sdxl") as error:
        held_out([case()], INVENTORIES, "family", "sdxl")
    assert "flux" in str(error.value)


def kept(registry: Registry, trials: list[Trial], **request: Any) -> str:
    study = registry.begin_study(
        f"{len(registry.studies()):064d}",
        model=ModelRef(name="flux-dev", source="catalog", weights="random"),
        workload=ONE_PICTURE,
        environment=h200(),
        request=request,
        now=example.NOW + timedelta(seconds=len(registry.studies())),
    )
    for trial in trials:
        registry.add_trial(study.id, trial)
    registry.finish_study(study.id, status="finished", summary={}, now=example.NOW)
    return study.id


def trial(chosen: Plan, rung: Rung, *, off: float = 1.0, **changes: Any) -> Trial:
    estimate = guess(chosen, ONE_PICTURE)
    values = {
        "rung": rung,
        "plan": chosen,
        "estimate": estimate,
        "measurement": measurement(estimate, off=off, rung=rung),
        "started_at": example.NOW,
    }
    return Trial(**(values | changes))


def test_of_a_plans_trials_the_most_complete_counts(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "plans.db")
    trials = [
        trial(EAGER, "denoiser", off=5.0),
        trial(COMPILED, "denoiser"),
        trial(EAGER, "pipeline", off=1.1),
        trial(EAGER, "replay", off=7.0),
    ]
    study = kept(registry, trials, steps=None)
    found = past_trials(registry)
    assert [item.trial for item in found.cases] == [f"{study[:12]}/2", f"{study[:12]}/3"]
    assert found.cases[1].error("peak") == pytest.approx(1 / 1.1 - 1)
    assert {item.family for item in found.cases} == {"flux"}
    assert found.left_out == {"repeats a plan of its study": 2}
    assert set(found.inventories) == {found.cases[0].model_key}


def test_what_says_nothing_of_a_prediction_is_left_out(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "plans.db")
    noisy = measurement(guess(EAGER, ONE_PICTURE), contaminated="4 GB of another process")
    out_of_memory = Failure(kind="out_of_memory", message="too large")
    trials = [
        trial(EAGER, "pipeline", measurement=noisy),
        trial(COMPILED, "pipeline", measurement=None, failure=out_of_memory),
        trial(COMPILED, "pipeline", estimate=None),
        trial(STREAMED, "pipeline", measurement=None, dropped="would need 30 GB"),
        trial(EAGER.caching_steps(FirstBlockCache(threshold=0.12)), "pipeline"),
    ]
    kept(registry, trials)
    found = past_trials(registry)
    assert found.cases == ()
    assert found.left_out == {
        "caches steps": 1,
        "contaminated": 1,
        "failed (out of memory)": 1,
        "not predicted": 1,
        "not run": 1,
    }


def test_trials_beside_foreign_load_count_where_they_are_asked_for(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "plans.db")
    noisy = measurement(guess(EAGER, ONE_PICTURE), contaminated="4 GB of another process")
    kept(registry, [trial(EAGER, "pipeline", measurement=noisy)])
    kept(registry, [trial(EAGER, "denoiser", measurement=noisy)], command="profile")
    kept(registry, [trial(EAGER, "replay", measurement=noisy)], command="verify")
    found = past_trials(registry, contaminated=True)
    assert len(found.cases) == 1
    assert found.left_out == {"profiled": 1, "verified": 1}


def test_only_the_model_that_is_asked_for(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "plans.db")
    kept(registry, [trial(EAGER, "pipeline")])
    assert len(past_trials(registry, "flux-dev").cases) == 1
    assert past_trials(registry, "sdxl").cases == ()


def test_steps_that_were_asked_for_are_known(tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "plans.db")
    kept(registry, [trial(EAGER, "pipeline")], steps=4)
    kept(registry, [trial(EAGER, "pipeline")], steps=None)
    assert [item.default_steps for item in past_trials(registry).cases] == [True, False]


def test_a_real_study_is_judged_by_the_predictions_it_kept(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path)
    bench.run()
    larger = (Shape(height=64, width=128),)
    bench.shapes = larger
    bench.run(workload=Workload(shapes=larger))
    found = past_trials(bench.registry)
    plans = {(item.workload, item.plan) for item in found.cases}
    assert len(plans) == len(found.cases) > 5
    numbered = {
        f"{study.id[:12]}/{number}": item
        for study in bench.registry.studies()
        for number, item in enumerate(bench.registry.trials(study.id), start=1)
    }
    for item in found.cases:
        kept_trial = numbered[item.trial]
        assert kept_trial.estimate == item.estimate
        assert kept_trial.measurement == item.measurement
    assert {item.estimate.source for item in found.cases} == {"roofline", "roofline+trials"}
    assert set(spreads(found.cases)) == {"peak", "latency", "step"}
    apart = held_out(found.cases, found.inventories, "resolution", "128x64")
    assert apart.unknown == 0
    assert apart.taught_by > 0
    assert apart.refitted["step"].median < apart.roofline["step"].median
