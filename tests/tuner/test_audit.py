"""What an audit looks at, and what it makes of the trials."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.plan import Compilation, ComponentPlan, GroupOffload, PipelineOptions, Plan
from registry.record import (
    Estimate,
    Failure,
    FailureKind,
    Measurement,
    PeakMemory,
    Quality,
    Rung,
    ShapeMeasurement,
    Trial,
)
from tests.tuner.cli import example_registry as example
from tuner.audit import STRATA, Bar, FalseTries, Stratum, Suspect, bar_of, false_tries, sample
from tuner.objective import Judge, Score

GB = 10**9
JUDGE = Judge("latency", example.WORKLOAD, 4)


def plan(number: int) -> Plan:
    """One of many different plans."""
    placement = GroupOffload(granularity="block", stream=False, blocks_per_group=number + 1)
    return Plan(
        pipeline=PipelineOptions(components={"transformer": ComponentPlan(placement=placement)})
    )


def estimate(latency_s: float = 1.0, peak_bytes: int = 10 * GB) -> Estimate:
    return Estimate(
        peak_vram_bytes=peak_bytes,
        load_peak_vram_bytes=peak_bytes,
        host_bytes=0,
        step_ms=latency_s * 250,
        latency_s=latency_s,
        source="roofline",
    )


def measured(
    latency_s: float, peak_bytes: int = 10 * GB, rung: Rung = "pipeline", host_bytes: int = GB
) -> Measurement:
    shape = ShapeMeasurement(
        shape=example.WORKLOAD.shapes[0],
        steps=4,
        step_ms=latency_s * 250,
        first_call_s=1.0,
        latency_s=None if rung == "denoiser" else latency_s,
    )
    memory = PeakMemory(
        peak_vram_bytes=peak_bytes, load_peak_vram_bytes=0, host_peak_bytes=host_bytes
    )
    return Measurement(rung=rung, shapes=(shape,), memory=memory, load_s=1.0, start_s=1.0)


def quality(*, passed: bool = True) -> Quality:
    return Quality(policy="balanced", passed=passed, calibrated=True, worst={}, scores=())


def trial(number: int, rung: Rung = "pipeline", **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "rung": rung,
        "plan": plan(number),
        "estimate": estimate(),
        "quality": quality(),
        "started_at": example.NOW,
    }
    return Trial(**(values | changes))


def failed(number: int, kind: FailureKind, peak_bytes: int = 10 * GB) -> Trial:
    failure = Failure(kind=kind, message="as the test says")
    guess = estimate(peak_bytes=peak_bytes)
    return trial(number, "denoiser", failure=failure, quality=None, estimate=guess)


BAR = Bar(JUDGE, Score(1.0, 0.01), ((10.0 * GB, 1.0 * GB, 1.0), (4.0 * GB, 20.0 * GB, 5.0)))


@pytest.mark.parametrize(
    ("latency_s", "peak_gb", "host_gb", "verdict"),
    [
        (0.9, 10, 1, "faster"),
        (0.995, 10, 1, "right"),
        (1.0, 10, 1, "right"),
        (3.0, 12, 1, "right"),
        (3.0, 6, 1, "smaller"),
        (5.05, 3.95, 20, "right"),
        (5.0, 3, 20, "smaller"),
        (4.0, 4, 20, "smaller"),
        (5.0, 4, 1, "smaller"),
    ],
)
def test_a_drop_is_false_where_the_plan_was_better_in_something(
    latency_s: float, peak_gb: float, host_gb: float, verdict: str
) -> None:
    found = measured(latency_s, round(peak_gb * GB), host_bytes=round(host_gb * GB))
    assert BAR.of_whole(trial(1, measurement=found)) == verdict


def test_what_failed_or_looks_wrong_was_rightly_dropped() -> None:
    assert BAR.of_whole(failed(1, "out_of_memory")) == "right"
    refused = trial(1, measurement=measured(0.1), quality=quality(passed=False))
    assert BAR.of_whole(refused) == "right"
    assert BAR.of_whole(trial(1, measurement=measured(0.1), quality=None)) == "right"


def test_whole_requests_are_run_only_of_what_may_be_false() -> None:
    def promising(latency_s: float, peak_gb: int, **changes: Any) -> bool:
        found = measured(latency_s, peak_gb * GB, "denoiser")
        return BAR.is_promising(trial(1, "denoiser", measurement=found, **changes), estimate())

    assert promising(0.5, 10)
    assert promising(2.0, 2)
    assert not promising(2.0, 10)
    assert not promising(0.5, 10, quality=quality(passed=False))
    assert not BAR.is_promising(failed(1, "out_of_memory"), estimate())


def test_the_bar_is_what_the_study_proved() -> None:
    baseline = trial(0, measurement=measured(3.0), quality=None)
    trials = [
        baseline,
        trial(1, measurement=measured(1.0, 8 * GB)),
        trial(2, measurement=measured(0.1), quality=quality(passed=False)),
        trial(3, measurement=measured(0.2), quality=None),
        trial(4, "denoiser", measurement=measured(0.3, rung="denoiser")),
        failed(5, "crashed"),
    ]
    best = example.record("study", example.NOW)
    bar = bar_of(JUDGE, best, trials, baseline.plan.digest)
    assert bar.best.value_s == best.measurement.latency_s
    assert [place[2] for place in bar.proved] == [3.0, 1.0]


def pool(**sizes: int) -> list[Suspect]:
    numbers = iter(range(1000))
    return [
        Suspect(plan(next(numbers)), estimate(), name, "a reason")  # type: ignore[arg-type]
        for name, size in sizes.items()
        for _ in range(size)
    ]


def test_a_sample_takes_from_every_reason_in_turn() -> None:
    chosen = sample(pool(memory=50, dominated=200, outbid=1), 7, "seed")
    counts = {name: sum(item.stratum == name for item in chosen) for name in STRATA}
    assert (counts["memory"], counts["dominated"], counts["outbid"]) == (3, 3, 1)


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    every = pool(memory=9, dominated=9)
    assert sample(every, 10, "seed")[:4] == sample(every, 4, "seed")
    assert sample(reversed(every), 10, "seed") == sample(every, 10, "seed")
    assert sample(every, 10, "seed") != sample(every, 10, "another")


@given(
    st.dictionaries(st.sampled_from(list(STRATA)), st.integers(0, 12)),
    st.integers(0, 30),
    st.text(),
)
def test_nothing_is_sampled_twice(sizes: dict[Stratum, int], count: int, seed: str) -> None:
    every = pool(**sizes)
    chosen = sample(every, count, seed)
    assert len(chosen) == len({item.plan for item in chosen}) == min(count, len(every))


def test_false_tries_are_counted_once_a_plan() -> None:
    slow = measured(2.0)
    trials = [
        trial(0, measurement=measured(9.0), quality=None),
        failed(1, "out_of_memory"),
        failed(2, "out_of_memory", peak_bytes=25 * GB),
        failed(3, "crashed"),
        trial(4, "denoiser", measurement=measured(2.0, rung="denoiser"), estimate=estimate(0.5)),
        trial(4, measurement=slow, estimate=estimate(0.5)),
        trial(5, measurement=slow, estimate=estimate(3.0)),
        trial(6, measurement=measured(0.9), quality=quality(passed=False)),
        trial(7, measurement=measured(1.0), estimate=estimate(0.5)),
        trial(7, "replay", failure=Failure(kind="error", message="not reproduced"), quality=None),
    ]
    found = false_tries(trials, plan(0).digest, 24 * GB, BAR)
    assert found == FalseTries(tried=7, did_not_fit=1, did_not_win=1, failed=2)


def test_a_compiled_plan_is_judged_like_any() -> None:
    """The objective of first images counts compiling, predicted and measured alike."""
    compiled = Plan(
        pipeline=PipelineOptions(
            components={"transformer": ComponentPlan(compilation=Compilation(scope="regional"))}
        )
    )
    judge = Judge("first-image", example.WORKLOAD, 4)
    bar = Bar(judge, Score(10.0), ())
    tried = trial(1, measurement=measured(1.0), estimate=estimate(1.0))
    slow = tried.model_copy(update={"plan": compiled})
    assert false_tries([slow], "", 24 * GB, bar).did_not_win == 0
