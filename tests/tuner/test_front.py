"""Speed against quality: what stands on the front, and what does not."""

from __future__ import annotations

from registry.plan import Plan
from registry.record import Quality, QualityScore, Trial
from tests.tuner.landscape import SHAPE, make_plan, measurement, quality, trial
from tuner.front import Place, closeness, front_of
from tuner.gate import judge
from tuner.labels import describe
from tuner.policies import Metric
from tuner.report.fronts import closeness_text, front_rows

BASE = make_plan()
FAST, NEAR, WORSE, SLOW = (
    make_plan(scheme, "regional")
    for scheme in ("float8_dynamic_row", "int8_weight_only", "int8_dynamic", "float8_weight_only")
)


def whole(plan: Plan, step_ms: float, verdict: Quality | None) -> Trial:
    measured = measurement("pipeline", step_ms)
    return trial("pipeline", plan, measured=measured, verdict=verdict)


BASELINE = whole(BASE, 100.0, None)
TRIALS = [
    BASELINE,
    whole(FAST, 40.0, quality(9.0)),
    whole(NEAR, 60.0, quality(35.0)),
    whole(WORSE, 70.0, quality(30.0)),
    whole(SLOW, 120.0, quality(40.0)),
    trial("denoiser", SLOW, measured=measurement("denoiser", 10.0)),
    trial("pipeline", WORSE, failure="error"),
]


def score(metric: Metric, value: float, seed: int) -> QualityScore:
    return QualityScore(metric=metric, value=value, seed=seed, prompt="a cat", shape=SHAPE)


def front() -> tuple[Place, ...]:
    return front_of(TRIALS, BASELINE, {NEAR.digest}, describe)


def test_a_plan_is_left_out_where_another_is_faster_and_nearer() -> None:
    assert [place.plan for place in front()] == [FAST.digest, NEAR.digest, BASE.digest]


def test_what_more_speed_would_cost_is_shown_though_it_was_refused() -> None:
    fast, near, reference = front()
    assert (fast.passed, fast.published) == (False, False)
    assert (near.passed, near.published, near.measure, near.quality_db) == (
        *(True, True),
        *("sqnr_db", 35.0),
    )
    assert near.speedup > 1.5
    assert (reference.quality_db, reference.speedup) == (None, 1.0)


def test_trained_weights_are_told_by_the_mean_over_pictures() -> None:
    scores = [
        *(score("sqnr_db", 30.0, seed=0), score("psnr_gain_db", 10.0, seed=0)),
        *(score("sqnr_db", 31.0, seed=1), score("psnr_gain_db", 20.0, seed=1)),
    ]
    assert closeness(judge(scores, "balanced", calibrated=True)) == ("psnr_gain_db", 15.0)
    assert closeness(judge(scores, "balanced", calibrated=False)) == ("sqnr_db", 30.0)
    assert closeness(judge([], "balanced", calibrated=True)) is None


def test_rows_are_words_and_a_front_of_one_is_none() -> None:
    rows = list(front_rows({"front": [place.as_json() for place in front()]}))
    assert [row[-1] for row in rows] == ["refused", "published", "passed"]
    assert rows[-1][3] == "the reference"
    assert closeness_text("psnr_gain_db", 14.25) == "14.2 dB nearer than another seed's"
    assert list(front_rows({"front": [front()[0].as_json()]})) == []
    assert list(front_rows({"front": ["of another release"]})) == []
