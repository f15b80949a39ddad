from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.plan import GroupOffload, Plan
from registry.record import Estimate, Measurement, PeakMemory, ShapeMeasurement
from tests.tuner.flux import ONE_PICTURE, REGIONAL, SQUARE, flux, hardware, plan
from tuner.corrections import PEAK_BOUNDS, STEP_BOUNDS, Corrections, learn
from tuner.cost_model import CostModel

EAGER, COMPILED = plan(), plan(compilation=REGIONAL)
ROW = plan("float8_dynamic_row", compilation=REGIONAL)
STREAMED = plan(placement=GroupOffload())
STEPS = 28


def guess(chosen: Plan, corrections: Corrections | None = None) -> Estimate:
    return CostModel(flux(), hardware(), corrections).estimate(chosen, ONE_PICTURE)


def measured(
    chosen: Plan,
    *,
    step: float = 1.0,
    fixed: float = 1.0,
    peak: float = 1.0,
    outside_bytes: int = 0,
    **changes: Any,
) -> tuple[Plan, Estimate, Measurement]:
    """A trial that took so many times what was predicted."""
    known = guess(chosen)
    step_ms = known.step_ms * step
    around_s = (known.latency_s - STEPS * known.step_ms / 1000) * fixed
    latency_s = around_s + STEPS * step_ms / 1000
    shape = ShapeMeasurement(
        shape=SQUARE, steps=STEPS, step_ms=step_ms, first_call_s=1.0, latency_s=latency_s
    )
    memory = PeakMemory(
        peak_vram_bytes=round(known.peak_vram_bytes * peak),
        load_peak_vram_bytes=0,
        outside_allocator_bytes=outside_bytes,
    )
    found = Measurement(
        rung="pipeline", shapes=(shape,), memory=memory, load_s=1.0, start_s=1.0, **changes
    )
    return chosen, known, found


def test_nothing_known_changes_nothing() -> None:
    assert learn((), flux()) == Corrections()
    assert guess(EAGER, Corrections()).source == "roofline"


def test_an_error_common_to_all_is_corrected() -> None:
    found = learn([measured(item, step=1.3) for item in (EAGER, COMPILED, ROW)], flux())
    corrected = guess(plan("float8_dynamic_tensor", compilation=REGIONAL), found)
    raw = guess(plan("float8_dynamic_tensor", compilation=REGIONAL))
    assert corrected.step_ms / raw.step_ms == pytest.approx(1.3, rel=0.01)
    assert corrected.source == "roofline+trials"


def test_an_error_of_one_choice_is_learned_for_it() -> None:
    trials = [measured(EAGER), measured(COMPILED)] + [measured(ROW, step=1.5)] * 6
    found = learn(trials, flux())
    slower = guess(ROW, found).step_ms / guess(ROW).step_ms
    same = guess(COMPILED, found).step_ms / guess(COMPILED).step_ms
    assert slower > 1.3
    assert same < 1.3 < slower
    assert found.trials == 8


def test_times_around_the_steps_are_corrected_by_themselves() -> None:
    found = learn([measured(EAGER, fixed=3.0)], flux())
    assert found.fixed == pytest.approx(3.0, rel=1e-6)
    assert guess(EAGER, found).step_ms == pytest.approx(guess(EAGER).step_ms)
    assert guess(EAGER, found).latency_s > guess(EAGER).latency_s


def test_memory_outside_the_allocator_is_taken_from_trials() -> None:
    found = learn([measured(EAGER, outside_bytes=900_000_000)], flux())
    grown = guess(EAGER, found).peak_vram_bytes - guess(EAGER).peak_vram_bytes
    assert grown == 350_000_000


def test_a_measured_peak_moves_the_estimate_but_not_below_the_weights() -> None:
    higher = learn([measured(EAGER, peak=1.1)], flux())
    assert guess(EAGER, higher).peak_vram_bytes == pytest.approx(
        1.1 * guess(EAGER).peak_vram_bytes, rel=0.01
    )
    weights = sum(item.elements for item in flux().components) * 2
    lower = learn([measured(EAGER, peak=0.1)], flux())
    assert guess(EAGER, lower).peak_vram_bytes >= weights


def test_the_peak_of_streamed_weights_says_nothing_of_resident_ones() -> None:
    found = learn([measured(STREAMED, peak=2.7)], flux())
    assert guess(EAGER, found).peak_vram_bytes == guess(EAGER).peak_vram_bytes
    assert guess(STREAMED, found).peak_vram_bytes > guess(STREAMED).peak_vram_bytes


def test_contaminated_trials_teach_nothing() -> None:
    assert learn([measured(EAGER, step=2, contaminated="4 GB of another process")], flux()) == (
        Corrections()
    )


def test_corrected_estimates_are_refused() -> None:
    first = learn([measured(EAGER, step=1.2)], flux())
    _, _, result = measured(EAGER)
    with pytest.raises(ValueError, match=r"roofline\+trials"):
        learn([(EAGER, guess(EAGER, first), result)], flux())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([EAGER, COMPILED, ROW]),
            st.floats(1e-3, 1e3),
            st.floats(1e-3, 1e3),
            st.floats(1e-3, 1e3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_factors_stay_within_bounds(trials: list[tuple[Plan, float, float, float]]) -> None:
    found = learn(
        [measured(item, step=step, fixed=fixed, peak=peak) for item, step, fixed, peak in trials],
        flux(),
    )
    slack = 1 + 1e-9
    for item in (EAGER, COMPILED, ROW):
        factor = guess(item, found).step_ms / guess(item).step_ms
        assert STEP_BOUNDS[0] / slack <= factor <= STEP_BOUNDS[1] * slack
    assert all(PEAK_BOUNDS[0] <= factor <= PEAK_BOUNDS[1] for factor in found.peak.values())
    assert STEP_BOUNDS[0] <= found.fixed <= STEP_BOUNDS[1]
