from __future__ import annotations

from typing import get_args

import pytest

from registry.record import Measurement, Policy, Quality, QualityScore
from registry.workload import Shape
from tests.tuner.landscape import GB, SHAPE, measurement
from tuner.gate import (
    CEILING_DB,
    compare_replay,
    failed_metrics,
    is_open,
    judge,
    rejection,
    satisfies,
)
from tuner.policies import CALIBRATED, POLICIES, SPREAD, Metric

PROMPT = "a cat on a mat"


def score(metric: Metric, value: float, *, seed: int = 0, step: int | None = None) -> QualityScore:
    return QualityScore(
        metric=metric, value=value, seed=seed, prompt=PROMPT, shape=SHAPE, step=step
    )


GOOD = (
    score("sqnr_db", 27.0),
    score("embedding_sqnr_db", 30.0),
    score("psnr_db", 25.0),
    score("psnr_gain_db", 20.0),
    score("ssim", 0.8),
    score("lpips", 0.15),
)


def test_every_policy_has_a_threshold_for_every_metric_and_they_are_ordered() -> None:
    assert set(POLICIES) == set(get_args(Policy))
    for metric in get_args(Metric):
        table = POLICIES if metric in POLICIES["strict"] else CALIBRATED
        strict, balanced, fast = (table[name][metric] for name in ("strict", "balanced", "fast"))
        if metric == "lpips":
            assert strict < balanced < fast
        else:
            assert strict > balanced > fast
    assert all(table.keys() == SPREAD.keys() for table in CALIBRATED.values())


def test_good_scores_pass() -> None:
    quality = judge(GOOD, "balanced", calibrated=True)

    assert quality.passed
    assert quality.reasons == ()
    assert quality.worst["sqnr_db"] == 27.0


@pytest.mark.parametrize(
    ("metric", "value"),
    [("psnr_db", 10.0), ("ssim", 0.2), ("lpips", 0.9)],
)
def test_one_bad_score_of_an_uncalibrated_metric_rejects_and_the_reason_names_it(
    metric: Metric, value: float
) -> None:
    bad = score(metric, value, seed=7, step=3)
    quality = judge([*GOOD, bad], "balanced", calibrated=True)

    assert not quality.passed
    (reason,) = quality.reasons
    for part in (metric, f"{value:.4g}", f"{POLICIES['balanced'][metric]:g}", "seed 7", PROMPT):
        assert part in reason
    assert "step 3" in reason
    assert quality.worst[metric] == value
    assert failed_metrics(quality) == {metric}


def pictures(metric: Metric, *values: float) -> list[QualityScore]:
    return [score(metric, value, seed=seed) for seed, value in enumerate(values)]


def verdict_with(metric: Metric, *values: float) -> tuple[Quality, bool]:
    others = [item for item in GOOD if item.metric != metric]
    scores = [*others, *pictures(metric, *values)]
    return judge(scores, "balanced", calibrated=True), is_open(scores, "balanced", calibrated=True)


@pytest.mark.parametrize("metric", sorted(SPREAD))
def test_trained_weights_are_held_to_a_bound_and_not_to_a_lucky_seed(metric: Metric) -> None:
    least, spread = CALIBRATED["balanced"][metric], SPREAD[metric]

    lucky, lucky_is_open = verdict_with(metric, least + spread)
    surer, surer_is_open = verdict_with(metric, *[least + spread] * 4)
    low, low_is_open = verdict_with(metric, least - 2 * spread)

    assert (lucky.passed, lucky_is_open) == (False, True)
    assert (surer.passed, surer_is_open) == (True, False)
    assert (low.passed, low_is_open) == (False, False)
    assert failed_metrics(lucky) == {metric}
    (unsure,), (under,) = rejection(lucky), rejection(low)
    assert f"{metric} " in unsure
    assert "is not surely over" in unsure
    assert "is under" in under


def test_pictures_that_differ_much_leave_more_doubt_than_is_usual() -> None:
    least, spread = CALIBRATED["balanced"]["sqnr_db"], SPREAD["sqnr_db"]
    mean = least + 2 * spread
    assert verdict_with("sqnr_db", mean, mean)[0].passed
    assert not verdict_with("sqnr_db", mean + 3 * spread, mean - 3 * spread)[0].passed


def test_a_picture_equal_to_the_bit_makes_no_doubt() -> None:
    fine = CALIBRATED["strict"]["sqnr_db"]
    assert verdict_with("sqnr_db", CEILING_DB, fine)[0].passed


def test_a_picture_counts_by_its_worst_step() -> None:
    steps = [score("sqnr_db", value, step=step) for step, value in enumerate((90.0, 5.0, 90.0))]
    assert not judge([*GOOD[1:], *steps], "balanced", calibrated=True).passed


def test_each_shape_is_held_alone() -> None:
    wide = Shape(height=SHAPE.height, width=2 * SHAPE.width)
    bad = score("sqnr_db", 1.0).model_copy(update={"shape": wide})
    (reason,) = judge([*GOOD, bad], "balanced", calibrated=True).reasons
    assert wide.label in reason


def test_no_seed_helps_where_one_score_alone_refuses_or_weights_are_random() -> None:
    doubtful = pictures("sqnr_db", CALIBRATED["balanced"]["sqnr_db"])
    assert is_open(doubtful, "balanced", calibrated=True)
    assert not is_open([*doubtful, score("ssim", 0.0)], "balanced", calibrated=True)
    assert not is_open(doubtful, "balanced", calibrated=False)


def test_random_weights_are_held_to_signal_to_noise_alone() -> None:
    noise = [score("sqnr_db", 22.0), score("psnr_db", 2.0), score("ssim", 0.0)]

    assert judge(noise, "balanced", calibrated=False).passed
    assert not judge(noise, "balanced", calibrated=True).passed
    assert not judge([*noise, score("embedding_sqnr_db", 1.0)], "balanced", calibrated=False).passed


@pytest.mark.parametrize("calibrated", [True, False])
def test_nothing_compared_is_not_passed(calibrated: bool) -> None:
    assert not judge([], "fast", calibrated).passed
    only_pictures = judge([score("psnr_db", 90.0)], "fast", calibrated)
    assert not only_pictures.passed
    assert "sqnr_db" in only_pictures.reasons[0]


def test_a_score_that_is_no_number_rejects_all() -> None:
    quality = judge(GOOD, "fast", calibrated=True, nonfinite=["psnr_db, seed 3"])

    assert not quality.passed
    assert "psnr_db, seed 3" in quality.reasons[0]


def test_balanced_admits_fp8_per_row_and_rejects_three_bits() -> None:
    assert judge([score("sqnr_db", 20.0)], "balanced", calibrated=False).passed
    assert not judge([score("sqnr_db", 20.0)], "strict", calibrated=False).passed
    assert judge([score("sqnr_db", 36.0)], "strict", calibrated=False).passed
    for policy in get_args(Policy):
        assert not judge([score("sqnr_db", 9.9)], policy, calibrated=False).passed


def test_a_threshold_itself_is_accepted() -> None:
    assert judge([score("sqnr_db", 15.0)], "balanced", calibrated=False).passed


def test_evidence_of_one_policy_can_meet_another() -> None:
    good = judge([score("sqnr_db", 33.0)], "balanced", calibrated=False)
    fair = judge([score("sqnr_db", 12.0)], "fast", calibrated=False)
    poor = judge([score("sqnr_db", 2.0)], "fast", calibrated=False)

    assert satisfies(good, "strict")
    assert satisfies(fair, "fast")
    assert not satisfies(fair, "balanced")
    assert not satisfies(poor, "fast")


# Replays


def proved(step_ms: float = 100.0, *, mad_ms: float = 0.0, layers: int = 304) -> Measurement:
    return measurement("pipeline", step_ms, mad_ms=mad_ms, layers=layers)


def replayed(
    step_ms: float = 100.0, *, mad_ms: float = 0.0, peak_bytes: int = 10 * GB, layers: int = 304
) -> Measurement:
    return measurement("replay", step_ms, mad_ms=mad_ms, peak_bytes=peak_bytes, layers=layers)


def of_few_samples(measured: Measurement) -> Measurement:
    samples = measured.shapes[0].latency_samples_s[:3]
    few = measured.shapes[0].model_copy(update={"latency_samples_s": samples})
    return measured.model_copy(update={"shapes": (few,)})


def test_a_replay_within_the_tolerances_has_no_problem() -> None:
    again = replayed(104.0, peak_bytes=int(10.19 * GB))
    assert compare_replay(proved(), again).problems == ()
    assert compare_replay(proved(), replayed(50.0, peak_bytes=5 * GB)).problems == ()


def test_each_way_not_to_repeat_is_named() -> None:
    (slow,) = compare_replay(proved(), replayed(110.0)).timing
    (large,) = compare_replay(proved(), replayed(peak_bytes=int(10.3 * GB))).substance
    (other,) = compare_replay(proved(layers=304), replayed(layers=303)).substance

    assert "latency" in slow
    assert "10300000000" in large
    assert "transformer" in other
    assert "303" in other


def test_the_spread_of_what_is_repeated_widens_the_tolerance() -> None:
    noisy = proved(100.0, mad_ms=5.0)

    assert compare_replay(noisy, replayed(112.0)).problems == ()
    assert compare_replay(noisy, replayed(120.0)).timing


def test_a_replays_own_spread_excuses_nothing() -> None:
    assert compare_replay(proved(), replayed(112.0, mad_ms=5.0)).timing
    assert compare_replay(proved(), replayed(107.0, mad_ms=2.5)).timing


def test_a_noisy_replay_proves_nothing_however_fast_it_was() -> None:
    (problem,) = compare_replay(proved(), replayed(90.0, mad_ms=8.0)).timing
    assert "too unsteady" in problem


def test_a_machine_as_noisy_as_before_can_prove() -> None:
    assert compare_replay(proved(mad_ms=5.0), replayed(mad_ms=5.0)).problems == ()


def test_noise_of_few_samples_counts_for_nothing() -> None:
    noisy = of_few_samples(proved(100.0, mad_ms=5.0))

    assert compare_replay(noisy, replayed(112.0)).timing
    assert compare_replay(proved(), of_few_samples(replayed(100.0, mad_ms=8.0))).problems == ()


def test_a_difference_in_the_plan_is_of_substance_whatever_the_times() -> None:
    repeat = compare_replay(proved(), replayed(120.0, peak_bytes=12 * GB))
    assert len(repeat.substance) == len(repeat.timing) == 1
    assert repeat.problems == (*repeat.substance, *repeat.timing)


def test_steps_alone_are_no_replay() -> None:
    steps_only = measurement("denoiser", 100.0)
    assert "not timed" in compare_replay(steps_only, replayed()).substance[0]


# Told to people


def test_a_rejection_is_told_once_a_metric() -> None:
    low = [score("ssim", 0.1 + seed / 10, seed=seed) for seed in range(3)]
    scores = [*GOOD, *low, score("lpips", 0.9)]
    rejected = judge(scores, "balanced", calibrated=True, nonfinite=["psnr_db of seed 4"])
    assert len(rejected.reasons) == 5
    assert rejection(rejected) == (
        "psnr_db of seed 4: not a finite number",
        "ssim 0.1 at worst, under 0.65 in 3 of 4 scores",
        "lpips 0.9 at worst, over 0.3 in 1 of 2 scores",
    )


def test_metrics_that_were_not_held_are_not_told() -> None:
    rejected = judge([score("sqnr_db", 1.0), score("ssim", 0.0)], "balanced", calibrated=False)
    assert rejection(rejected) == ("sqnr_db 1 at worst, under 15 in 1 of 1 scores",)
