"""From proofs to records: every figure comes from where it should."""

from __future__ import annotations

from typing import Any

import pytest

from registry.record import ArtifactRef
from tests.tuner import flux, landscape
from tests.tuner.study_bench import GB
from tuner.models import resolve_model
from tuner.publishing import make_record, measured, record_key, why_nothing
from tuner.request import StudyRequest
from tuner.search import Proven

REQUEST = StudyRequest(
    model=resolve_model("flux-dev"),
    workload=landscape.WORKLOAD,
    budget_bytes=24 * GB,
    host_budget_bytes=64 * GB,
    objective="throughput",
)
FAST, PLAIN = landscape.make_plan("int8_dynamic", "regional"), landscape.make_plan()
ESTIMATE = landscape.estimate(50.0)
CACHE = ArtifactRef(kind="compile_cache", sha256="a" * 64, size_bytes=3)


def proven(**changes: Any) -> Proven:
    values: dict[str, Any] = {
        "plan": FAST,
        "estimate": ESTIMATE,
        "trial": landscape.trial(
            "pipeline",
            FAST,
            measured=landscape.measurement("pipeline", 52.0),
            verdict=landscape.quality(24.0),
        ),
        "replay": landscape.trial("replay", FAST, measured=landscape.measurement("replay", 51.0)),
        "score_s": 1.9,
    }
    return Proven(**(values | changes))


BASELINE = landscape.trial("pipeline", PLAIN, measured=landscape.measurement("pipeline", 104.0))


def record(proof: Proven) -> Any:
    return make_record(
        REQUEST,
        flux.flux(),
        flux.h200(),
        proof,
        BASELINE,
        artifacts=[CACHE],
        study="5f3c",
        now=landscape.START,
    )


def test_the_figures_are_the_replays_and_the_verdict_the_proofs() -> None:
    made = record(proven())
    assert made.measurement.step_ms == 51.0
    assert made.quality == landscape.quality(24.0)
    assert (made.baseline_plan, made.baseline.step_ms) == (PLAIN, 104.0)
    assert 1.5 < made.speedup < 104.0 / 51.0
    assert made.estimate == ESTIMATE
    assert made.artifacts == (CACHE,)


def test_what_was_asked_is_kept() -> None:
    made = record(proven())
    assert (made.budget_bytes, made.host_budget_bytes) == (24 * GB, 64 * GB)
    assert (made.objective, made.study, made.created_at) == ("throughput", "5f3c", landscape.START)
    assert made.model == REQUEST.model.ref
    assert made.pipeline_class == flux.flux().pipeline_class


def test_the_key_is_what_a_plan_is_found_by() -> None:
    key = record_key(REQUEST, flux.flux(), flux.h200(), FAST)
    assert key == record(proven()).key
    assert key.plan == FAST.digest
    other = record_key(REQUEST, flux.flux(), flux.h200(torch="2.12.0"), FAST)
    assert {name for name, value in key if getattr(other, name) != value} == {"runtime"}


def test_the_reference_passes_by_being_it() -> None:
    again = landscape.trial("replay", PLAIN, measured=landscape.measurement("replay", 103.0))
    made = record(proven(plan=PLAIN, trial=BASELINE, replay=again))
    assert made.quality.passed
    assert made.quality.calibrated
    assert made.quality.reasons == ("this plan is the reference",)


def test_a_failed_trial_has_no_figures() -> None:
    with pytest.raises(ValueError, match=f"pipeline trial of {FAST.digest} measured nothing"):
        measured(landscape.trial("pipeline", FAST, failure="crashed"))


def test_how_far_a_study_came_that_proved_nothing() -> None:
    trials = [
        BASELINE,
        landscape.trial("denoiser", FAST, failure="rejected_quality"),
        landscape.trial("replay", PLAIN, failure="timing"),
    ]
    assert why_nothing(trials, 45.0) == (
        "1 plan ran; 1 lost the picture; 1 replay did not repeat what was measured; "
        "the time limit of 45.0 s left none for more"
    )
    assert why_nothing(trials[:1], None) == "1 plan ran; nothing was left to try"
