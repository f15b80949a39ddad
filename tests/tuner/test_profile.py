from __future__ import annotations

from collections.abc import Mapping

import pytest

from registry.record import Measurement, PeakMemory, ShapeMeasurement
from tests.tuner.flux import SQUARE
from tuner.kernels import WorkClass
from tuner.profile import StepProfile, step_profile
from tuner.protocol import ProfileResult, StepTrace, TracedOp, TrialResult
from tuner.report.profiles import sentences
from tuner.traces import LAUNCHING, OUTSIDE


def op(name: str, own_us: float, *, hidden_us: float = 0.0, category: str = "kernel") -> TracedOp:
    total_us = own_us + hidden_us
    return TracedOp(name=name, category=category, calls=4, total_us=total_us, own_us=own_us)


GPU = StepTrace(
    on="cuda",
    steps=2,
    window_us=200_000,
    ops=(
        op("nvjet_qqtst_128x256", 88_000),
        op("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 60_000),
        op("triton_red_fused_0", 30_000),
        op("vectorized_layer_norm_kernel", 10_000),
        op("Memcpy HtoD (Pinned -> Device)", 4_000, hidden_us=100_000, category="gpu_memcpy"),
    ),
    idle_us={LAUNCHING: 8_000},
    launches=2400,
)
FLOORS: dict[WorkClass, float] = {"matmul": 42.0, "attention": 15.0, "elementwise": 16.0}


def profile(
    trace: StepTrace = GPU,
    floors: Mapping[WorkClass, float] = FLOORS,
    graphs: int = 3,
    breaks: Mapping[str, int] | None = None,
    recompiles: tuple[str, ...] = (),
) -> StepProfile:
    times = ShapeMeasurement(shape=SQUARE, steps=6, step_ms=98.0, first_call_s=1.0)
    memory = PeakMemory(peak_vram_bytes=1, load_peak_vram_bytes=1)
    measured = Measurement(
        rung="denoiser", shapes=(times,), memory=memory, load_s=1.0, start_s=1.0, graphs=graphs
    )
    result = ProfileResult(
        trial=TrialResult(measurement=measured, calibrated=False),
        trace=trace,
        graph_breaks=breaks or {},
        recompiles=recompiles,
        trace_bytes=1,
    )
    return step_profile(result, floors)


def text(found: StepProfile) -> str:
    return "\n".join(sentences(found))


def test_parts_are_a_steps_and_add_up() -> None:
    found = profile()
    assert (found.step_ms, found.traced_ms, found.launches) == (98.0, 100.0, 1200)
    assert [item.part for item in found.parts] == [
        "matmul",
        "attention",
        "elementwise",
        "normalisation",
        "idle",
        "copies",
    ]
    assert sum(item.share for item in found.parts) == pytest.approx(1.0)
    assert sum(item.ms for item in found.parts) == pytest.approx(found.traced_ms)
    matmul = found.part("matmul")
    assert matmul is not None
    assert (matmul.ms, matmul.share, matmul.calls) == (44.0, 0.44, 2)


def test_the_floor_of_elementwise_work_is_normalisations_too() -> None:
    found = profile()
    elementwise, normalisation = found.part("elementwise"), found.part("normalisation")
    assert elementwise is not None
    assert normalisation is not None
    assert found.over_floor(elementwise) == pytest.approx(20 / 16)
    assert found.over_floor(normalisation) is None


def test_the_sentences_say_where_the_time_goes() -> None:
    told = text(profile())
    assert "A step takes 98.0 ms; 100 ms while it was traced, over 2 steps." in told
    assert "44% of the step is matrix multiplication (44.0 ms), near the floor of 42.0 ms." in told
    assert "30% of the step is attention (30.0 ms), 2.0 times the floor of 15.0 ms." in told
    assert "with normalisation it is 1.2 times the floor of 16.0 ms" in told
    assert "50.0 ms more of copies are hidden behind computing." in told
    assert "4% of the step the GPU does nothing (4.00 ms)." in told
    assert "(1200 launches a step)" in told
    assert "3 compiled graphs, no graph breaks." in told


def test_graph_breaks_and_recompiles_come_with_their_reasons() -> None:
    breaks = {"Unsupported: Tensor.item()": 4, "rare": 1}
    told = text(profile(breaks=breaks, recompiles=("forward: 1/0: stride mismatch",)))
    assert "graph breaks, 5 in all:\n  4× Unsupported: Tensor.item()\n  1× rare" in told
    assert "Compiled again, 1 in all:\n  forward: 1/0: stride mismatch" in told
    assert text(profile(graphs=0)).endswith("Nothing of it is compiled.")


def test_a_part_without_a_floor_is_told_without_one() -> None:
    assert "44% of the step is matrix multiplication (44.0 ms)." in text(profile(floors={}))


def test_a_cpu_has_no_gpu_that_idles() -> None:
    trace = StepTrace(
        on="cpu",
        steps=1,
        window_us=10_000,
        ops=(op("aten::addmm", 6_000, hidden_us=500, category="cpu_op"),),
        idle_us={OUTSIDE: 4_000},
        launches=0,
    )
    found = profile(trace, {})
    told = text(found)
    assert "40% of the step no operator runs (4.00 ms)." in told
    assert "Python between the operators" in told
    assert "GPU" not in told
    assert [item.hidden_ms for item in found.parts] == [0.0, 0.0]
