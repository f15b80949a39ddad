from __future__ import annotations

import pytest

from registry.record import Measurement
from registry.workload import Shape, Workload
from tests.tuner.landscape import STEPS, WORKLOAD, estimate, make_plan, measurement
from tuner.objective import Judge, Score, latency_mad_s, start_up_s

EAGER = make_plan()
COMPILED = make_plan(scope="regional")
MIXED = Workload(
    shapes=(
        Shape(height=512, width=512, weight=3.0),
        Shape(height=1024, width=1024, batch_size=2),
    )
)


def mixed(small_ms: float, large_ms: float) -> Measurement:
    """Both shapes of MIXED, whole requests."""
    found = [measurement("pipeline", step_ms).shapes[0] for step_ms in (small_ms, large_ms)]
    shapes = [
        item.model_copy(update={"shape": shape})
        for item, shape in zip(found, MIXED.shapes, strict=True)
    ]
    return measurement("pipeline", 1.0).model_copy(update={"shapes": tuple(shapes)})


def test_a_score_beats_another_only_beyond_the_noise_of_both() -> None:
    assert Score(1.0).beats(Score(1.1))
    assert not Score(1.0, spread_s=0.2).beats(Score(1.1))
    assert not Score(1.0).beats(Score(1.1, spread_s=0.2))
    assert not Score(1.0).beats(Score(1.0))


def test_latency_of_a_request_is_measured_steps_and_the_rest_as_estimated() -> None:
    judge = Judge("latency", WORKLOAD, STEPS)
    score = judge.projected(measurement("denoiser", 50.0, mad_ms=0.5), estimate(100.0))

    assert score.value_s == pytest.approx(0.5 + STEPS * 0.05)
    assert score.spread_s == pytest.approx(3 * STEPS * 0.0005)


def test_steps_alone_are_no_measured_request() -> None:
    judge = Judge("latency", WORKLOAD, STEPS)

    assert judge.measured(measurement("denoiser", 50.0)) is None
    score = judge.measured(measurement("pipeline", 50.0, mad_ms=1.0))
    assert score is not None
    assert score.value_s == pytest.approx(1.9)
    assert score.spread_s == pytest.approx(3 * STEPS * 0.001)


def test_shapes_count_by_their_weight() -> None:
    score = Judge("latency", MIXED, STEPS).measured(mixed(10.0, 50.0))

    assert score is not None
    assert score.value_s == pytest.approx((3 * (0.5 + 0.28) + (0.5 + 1.4)) / 4)


def test_throughput_is_seconds_a_picture_over_the_whole_mix() -> None:
    score = Judge("throughput", MIXED, STEPS).measured(mixed(10.0, 50.0))

    assert score is not None
    # Three requests of one picture and one of two: five pictures.
    assert score.value_s == pytest.approx((3 * (0.5 + 0.28) + (0.5 + 1.4)) / 5)
    assert Judge("throughput", MIXED, STEPS).estimated(EAGER, estimate(100.0)) == pytest.approx(
        3.3 / 1.25
    )


def test_the_first_image_counts_start_load_and_compilation() -> None:
    judge = Judge("first-image", WORKLOAD, STEPS)
    found = measurement("pipeline", 50.0, first_call_s=15.0, load_s=10.0)

    assert start_up_s(found) == pytest.approx(28.0)
    score = judge.measured(found)
    assert score is not None
    assert score.value_s == pytest.approx(28.0)
    cold = judge.measured(found.model_copy(update={"cold_first_image_s": 31.0}))
    assert cold is not None
    assert cold.value_s == 31.0
    assert judge.estimated(COMPILED, estimate(50.0)) > judge.estimated(EAGER, estimate(50.0)) + 10


def test_spread_of_requests() -> None:
    assert latency_mad_s(measurement("pipeline", 50.0, mad_ms=1.0)) == pytest.approx(0.028)
    assert latency_mad_s(measurement("denoiser", 50.0)) == 0.0
