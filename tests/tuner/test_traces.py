"""Traces put together by hand, each event as `torch.profiler` writes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidInput
from tuner.protocol import StepTrace
from tuner.traces import (
    BETWEEN,
    LAUNCHING,
    OTHER_STREAM,
    OUTSIDE,
    UNEXPLAINED,
    WAITING,
    digest_trace,
)

Event = dict[str, Any]


def event(
    category: str, name: str, start_us: float, end_us: float, correlation: int | None = None
) -> Event:
    args = {} if correlation is None else {"correlation": correlation}
    duration_us = end_us - start_us
    return {"ph": "X", "cat": category, "name": name, "ts": start_us, "dur": duration_us} | {
        "args": args
    }


def step(start_us: float, end_us: float, number: int = 1) -> Event:
    return event("user_annotation", f"ProfilerStep#{number}", start_us, end_us)


def kernel(name: str, start_us: float, end_us: float, correlation: int | None = None) -> Event:
    return event("kernel", name, start_us, end_us, correlation)


def copy(start_us: float, end_us: float) -> Event:
    return event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", start_us, end_us)


def own(trace: StepTrace) -> dict[str, float]:
    return {op.name.split()[0]: op.own_us for op in trace.ops}


def adds_up(trace: StepTrace) -> bool:
    parts = sum(op.own_us for op in trace.ops) + sum(trace.idle_us.values())
    return parts == pytest.approx(trace.window_us)


def test_kernels_are_summed_by_name_over_the_steps() -> None:
    trace = digest_trace(
        [
            {"ph": "M", "name": "process_name"},
            step(0, 100, 1),
            step(100, 200, 2),
            event("gpu_user_annotation", "ProfilerStep#1", 10, 90),
            kernel("a", 10, 50),
            kernel("b", 50, 100),
            kernel("a", 100, 190),
        ]
    )
    assert (trace.on, trace.steps, trace.window_us) == ("cuda", 2, 180)
    assert [(op.name, op.calls, op.own_us) for op in trace.ops] == [("a", 2, 130), ("b", 1, 50)]
    assert trace.idle_us == {}


def test_a_copy_costs_only_what_no_kernel_hides() -> None:
    trace = digest_trace([step(0, 200), kernel("a", 0, 50), kernel("b", 80, 100), copy(40, 90)])
    (memcpy,) = [op for op in trace.ops if op.category == "gpu_memcpy"]
    assert (memcpy.total_us, memcpy.own_us) == (50, 30)
    assert adds_up(trace)


def test_of_two_kernels_side_by_side_the_first_counts() -> None:
    trace = digest_trace([step(0, 200), kernel("a", 0, 50), kernel("b", 20, 80)])
    assert own(trace) == {"a": 50, "b": 30}
    assert adds_up(trace)


def launch(start_us: float, end_us: float, correlation: int) -> Event:
    return event("cuda_runtime", "cudaLaunchKernel", start_us, end_us, correlation)


@pytest.mark.parametrize(
    ("cause", "before"),
    [
        (LAUNCHING, [launch(150, 160, 7)]),
        (LAUNCHING, [launch(95, 160, 7)]),
        (WAITING, [event("cuda_runtime", "cudaStreamSynchronize", 50, 101), launch(150, 160, 7)]),
        (OTHER_STREAM, [launch(20, 30, 7)]),
        (UNEXPLAINED, [launch(20, 30, 8)]),
    ],
)
def test_idle_time_has_a_cause(cause: str, before: list[Event]) -> None:
    events = [step(0, 300), kernel("a", 0, 100, 6), kernel("b", 170, 200, 7), *before]
    trace = digest_trace(events)
    assert trace.idle_us == {cause: 70}
    assert adds_up(trace)


def test_pauses_of_a_few_microseconds_are_nobodys_fault() -> None:
    events = [step(0, 300), kernel("a", 0, 100, 6), kernel("b", 102, 200, 7), launch(101, 102, 7)]
    assert digest_trace(events).idle_us == {BETWEEN: 2}


def test_a_wait_long_before_is_no_reason() -> None:
    waited = event("cuda_runtime", "cudaDeviceSynchronize", 10, 20)
    events = [step(0, 300), kernel("a", 0, 100), kernel("b", 170, 200, 7), launch(150, 160, 7)]
    assert digest_trace([*events, waited]).idle_us == {LAUNCHING: 70}


def test_launches_are_counted_by_every_name() -> None:
    started = [
        event("cuda_driver", "cuLaunchKernelEx", 0, 1, 1),
        event("cuda_runtime", "cudaGraphLaunch", 1, 2, 2),
        event("cuda_runtime", "cudaMemcpyAsync", 2, 3, 3),
    ]
    assert digest_trace([step(0, 9), kernel("a", 1, 9), *started]).launches == 2


def operator(name: str, start_us: float, end_us: float) -> Event:
    return event("cpu_op", name, start_us, end_us)


def test_an_operator_counts_without_those_it_calls() -> None:
    trace = digest_trace(
        [
            operator("aten::before", 0, 8),
            step(10, 110),
            operator("aten::linear", 20, 80),
            operator("aten::t", 25, 30),
            operator("aten::addmm", 30, 75),
            operator("aten::add", 90, 100),
        ]
    )
    assert (trace.on, trace.window_us) == ("cpu", 100)
    assert own(trace) == {"aten::linear": 10, "aten::t": 5, "aten::addmm": 45, "aten::add": 10}
    assert trace.idle_us == {OUTSIDE: 30}
    assert adds_up(trace)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no step"):
        digest_trace([kernel("a", 0, 10)])


def test_a_kernels_name_is_cut() -> None:
    (op,) = digest_trace([step(0, 9), kernel("x" * 5000, 1, 2)]).ops
    assert len(op.name) == 300


Spans = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 90), st.booleans()), min_size=1, max_size=30
)


@given(Spans)
def test_every_moment_belongs_to_one_operation_or_is_idle(
    spans: list[tuple[int, int, bool]],
) -> None:
    events = [
        copy(start, start + length) if is_copy else kernel("a", start, start + length)
        for start, length, is_copy in spans
    ]
    trace = digest_trace([step(0, 600), *events])
    assert adds_up(trace)
    assert all(0 <= op.own_us <= op.total_us + 1e-9 for op in trace.ops)
