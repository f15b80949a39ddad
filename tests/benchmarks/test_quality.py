"""The gate on a model that draws: planted damage is refused, bf16 by other kernels is not."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import damage
from benchmarks.quality.pairs import PAIRS, SETS, pairs
from benchmarks.quality.scores import results
from benchmarks.quality.thresholds import POLICY_NAMES, rules, verdicts
from benchmarks.quality.treatments import INT8_TEXT, TREATMENTS, of_kind, plan_of
from registry.record import Quality
from registry.workload import Shape, Workload
from tests.tuner.pipeline.tiny import CPU
from tuner.choices import STEP_CACHES
from tuner.gate import failed_metrics, is_open, judge
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.proof import QualityRejectedError, score, write_reference
from tuner.pipeline.request import Requests
from tuner.pipeline.timing import DeviceClock
from tuner.policies import CALIBRATED, SPREAD
from tuner.protocol import TrialJob

SPEC = resolve_model("shapes-flux")
SHAPE = Shape(height=128, width=128, text_tokens=32)
STEPS = 20
"""As many as the thresholds rest on: what a block at 3 bits loses, it loses in the last of them."""
SOME = pairs("held-out")[:2]


def requests_of(pipe: Any) -> Requests:
    job = TrialJob(
        model=SPEC,
        workload=Workload(shapes=(SHAPE,)),
        plan=plan_of(),
        rung="pipeline",
        budget_bytes=1,
        steps=STEPS,
        prompts=tuple(pair.prompt for pair in SOME),
        seeds=tuple(pair.seed for pair in SOME),
        compile_cache_dir="",
    )
    return Requests(job, pipe, DeviceClock(CPU), lambda *_: None)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return engine.load(SPEC, plan_of(), CPU)


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    write_reference(requests_of(pipe), pipe.transformer, path)
    return path


Verdict = Callable[..., Quality]


@pytest.fixture
def verdict(folder: Path) -> Verdict:
    def found(pipe: Any, planting: damage.Planting | None = None) -> Quality:
        with planting(pipe, 0) if planting else nullcontext():
            scores, _ = score(
                requests_of(pipe),
                pipe,
                pipe.transformer,
                CPU,
                folder,
                lambda *_: None,
                pictures=True,
                is_open=lambda some: is_open(some, "balanced", calibrated=True),
            )
        return judge(scores, "balanced", calibrated=True)

    return found


@pytest.mark.parametrize(
    "name", ["math_attention", "int8_weight_only", "float8_weight_only", "taylorseer_4"]
)
def test_what_does_no_harm_passes(verdict: Verdict, name: str) -> None:
    quality = verdict(engine.load(SPEC, TREATMENTS[name].plan, CPU))
    assert quality.passed
    assert len({item.seed for item in quality.scores}) == len(SOME)


def test_quantized_text_encoders_pass(verdict: Verdict) -> None:
    assert verdict(engine.load(SPEC, plan_of(text=INT8_TEXT), CPU)).passed


@pytest.mark.parametrize(
    ("planting", "metric"),
    [
        (damage.block_at_3_bits, "sqnr_db"),
        (damage.swapped_channels, "sqnr_db"),
        (damage.swapped_colours, "psnr_gain_db"),
        (damage.text_at_2_bits, "embedding_sqnr_db"),
    ],
    ids=lambda item: getattr(item, "__name__", item),
)
def test_planted_damage_is_refused(
    verdict: Verdict, pipe: Any, planting: damage.Planting, metric: str
) -> None:
    quality = verdict(pipe, planting)
    assert not quality.passed
    assert metric in failed_metrics(quality)


@pytest.mark.parametrize(
    ("planting", "message"),
    [
        (damage.nan_at_last_of(STEPS), "not finite"),
        (damage.overflowing_vae, "not finite"),
        (damage.scheduler_shift(1.0), "other timesteps"),
        (damage.scheduler_shift(3.0), "other timesteps"),
    ],
    ids=["nan", "overflowing_vae", "shift_1", "shift_3"],
)
def test_no_policy_admits_what_is_broken(
    verdict: Verdict, pipe: Any, planting: damage.Planting, message: str
) -> None:
    with pytest.raises(QualityRejectedError, match=message):
        verdict(pipe, planting)


@pytest.mark.parametrize(("is_open", "pictures"), [(False, 2), (True, 4)])
def test_other_seeds_are_scored_only_while_the_verdict_is_open(
    pipe: Any, folder: Path, is_open: bool, pictures: int
) -> None:
    found, _ = score(
        requests_of(pipe),
        pipe,
        pipe.transformer,
        CPU,
        folder,
        lambda *_: None,
        pictures=False,
        is_open=lambda _: is_open,
    )
    assert len({(item.prompt, item.seed) for item in found}) == pictures


def test_the_sets_share_no_prompt_and_no_seed_and_are_listed() -> None:
    with PAIRS.open(encoding="utf-8", newline="") as file:
        listed = [tuple(row.values()) for row in csv.DictReader(file)]
    drawn = [
        (name, str(pair.number), str(pair.seed), pair.prompt)
        for name in SETS
        for pair in pairs(name)
    ]
    assert listed == drawn
    assert len({row[2] for row in listed}) == len({row[3] for row in listed}) == len(listed)


def test_the_policies_are_what_the_rule_makes_of_the_calibration_set() -> None:
    for rule in rules(results("calibration")):
        assert SPREAD[rule.metric] == rule.spread
        assert CALIBRATED["strict"][rule.metric] == rule.strict
        assert CALIBRATED["balanced"][rule.metric] == rule.balanced
        assert CALIBRATED["fast"][rule.metric] == rule.fast


def test_held_out_damage_is_refused_and_noise_passes_by_single_pictures() -> None:
    passed = {
        item.treatment: item.passed_alone[POLICY_NAMES.index("balanced")] / item.pictures
        for item in verdicts(results("held-out"))
    }
    assert all(passed[name] >= 0.99 for name in of_kind("noise"))
    assert all(passed[name] <= 0.01 for name in of_kind("harm"))


def test_step_caches_that_are_tried_keep_pictures_of_the_model_that_draws_and_bolder_do_not() -> (
    None
):
    """So its own ladders end where the gate begins to refuse; other models have other limits."""
    offered = {cache for ladder in STEP_CACHES for cache in ladder}
    place = POLICY_NAMES.index("balanced")
    cached = set(of_kind("cached"))
    found = [item for item in verdicts(results("held-out")) if item.treatment in cached]
    assert len(found) == len(cached)
    for item in found:
        cache = TREATMENTS[item.treatment].plan.pipeline.step_cache
        share = item.passed_as_plan[place] / item.plans
        assert share >= 0.95 if cache in offered else share <= 0.8
