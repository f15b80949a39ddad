"""A trace of `torch.profiler`, boiled down: what ran, how long, and why nothing did.

Reads chrome's JSON as torch writes it. On a GPU the kernels and copies count, and the time between
them is idle; on a CPU the operators do, each without those that it calls.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.errors import InvalidInput
from tuner.protocol import StepTrace, TracedOp

STEP_MARK = "ProfilerStep#"
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
BY_HOST = frozenset({"cuda_runtime", "cuda_driver"})
OPERATOR = "cpu_op"
BACK_TO_BACK_US = 5.0
"""A pause no longer than this lies between any two kernels, however well they are queued."""
NAME_CHARACTERS = 300
"""Template arguments of a kernel go on for thousands."""

LAUNCHING, WAITING = "launching", "synchronising"
OTHER_STREAM, BETWEEN, UNEXPLAINED = "other stream", "between kernels", "unexplained"
OUTSIDE = "outside operators"


@dataclass
class _Span:
    """One event, in microseconds. `own_us` is worked out while the trace is read."""

    name: str
    category: str
    start_us: float
    end_us: float
    correlation: int | None = None
    own_us: float = field(default=0.0)

    @property
    def duration_us(self) -> float:
        return self.end_us - self.start_us

    @property
    def is_copy(self) -> bool:
        return self.category == "gpu_memcpy"


Interval = tuple[float, float]


def digest_trace(events: Iterable[Mapping[str, Any]]) -> StepTrace:
    """What happened in the steps that the profiler marked. Raises InvalidInput where it marked
    none."""
    spans = sorted((_span(item) for item in events if _counts(item)), key=_order)
    marks = [span for span in spans if span.name.startswith(STEP_MARK)]
    if not marks:
        raise InvalidInput("the trace holds no step of the denoiser")
    window = (marks[0].start_us, max(mark.end_us for mark in marks))
    on_device = [s for s in spans if s.category in ON_DEVICE and s.end_us > window[0]]
    if on_device:
        return _device_trace(on_device, [s for s in spans if s.category in BY_HOST], len(marks))
    operators = [s for s in spans if s.category == OPERATOR and _inside(s, window)]
    return _host_trace(operators, window, len(marks))


def _counts(item: Mapping[str, Any]) -> bool:
    if item.get("ph") != "X" or "dur" not in item:
        return False
    category = item.get("cat")
    is_mark = category == "user_annotation" and str(item.get("name")).startswith(STEP_MARK)
    return is_mark or category == OPERATOR or category in ON_DEVICE or category in BY_HOST


def _span(item: Mapping[str, Any]) -> _Span:
    start_us = float(item["ts"])
    correlation = item.get("args", {}).get("correlation")
    name, category = str(item["name"])[:NAME_CHARACTERS], str(item["cat"])
    return _Span(name, category, start_us, start_us + float(item["dur"]), correlation)


def _order(span: _Span) -> tuple[float, float]:
    """Of two that start together, the outer one first."""
    return span.start_us, -span.end_us


def _inside(span: _Span, window: Interval) -> bool:
    return window[0] <= span.start_us and span.end_us <= window[1]


def _device_trace(on_device: list[_Span], by_host: list[_Span], steps: int) -> StepTrace:
    """From the first kernel to the last: the host waited for the device before the first, which no
    step does outside a profile."""
    window = (on_device[0].start_us, max(span.end_us for span in on_device))
    computing = [span for span in on_device if not span.is_copy]
    _share_out(computing, ())
    _share_out([span for span in on_device if span.is_copy], _merged(computing))
    return StepTrace(
        on="cuda",
        steps=steps,
        window_us=window[1] - window[0],
        ops=tuple(_ops(on_device)),
        idle_us=_idle(on_device, by_host),
        launches=sum("Launch" in span.name for span in by_host),
    )


def _share_out(spans: Sequence[_Span], taken: Sequence[Interval]) -> None:
    """Each moment belongs to one: to what is `taken`, else to whichever began first."""
    covered_us = float("-inf")
    for span in spans:
        start_us = max(span.start_us, covered_us)
        if span.end_us > start_us:
            span.own_us = span.end_us - start_us - _overlap_us((start_us, span.end_us), taken)
            covered_us = span.end_us


def _merged(spans: Iterable[_Span]) -> list[Interval]:
    """Disjoint, in order."""
    found: list[Interval] = []
    for span in spans:
        if found and span.start_us <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], span.end_us))
        else:
            found.append((span.start_us, span.end_us))
    return found


def _overlap_us(interval: Interval, taken: Sequence[Interval]) -> float:
    first = max(0, bisect_left(taken, interval) - 1)
    total_us = 0.0
    for start_us, end_us in taken[first:]:
        if start_us >= interval[1]:
            break
        total_us += max(0.0, min(end_us, interval[1]) - max(start_us, interval[0]))
    return total_us


def _idle(on_device: Sequence[_Span], by_host: Sequence[_Span]) -> dict[str, float]:
    """Microseconds in which the device did nothing, by what the next kernel was waiting for."""
    launches: dict[int | None, _Span] = {
        span.correlation: span for span in by_host if span.correlation is not None
    }
    waits = sorted(span.end_us for span in by_host if "ynchronize" in span.name)
    causes: dict[str, float] = {}
    busy_until_us = on_device[0].end_us
    for span in on_device:
        if span.start_us > busy_until_us:
            cause = _cause(busy_until_us, span, launches.get(span.correlation), waits)
            causes[cause] = causes.get(cause, 0.0) + span.start_us - busy_until_us
        busy_until_us = max(busy_until_us, span.end_us)
    return causes


def _cause(idle_from_us: float, span: _Span, launch: _Span | None, waits: Sequence[float]) -> str:
    if span.start_us - idle_from_us <= BACK_TO_BACK_US:
        return BETWEEN
    if launch is None:
        return UNEXPLAINED
    if launch.end_us <= idle_from_us:
        return OTHER_STREAM
    # A wait ends as the device falls idle, and only then can the host go on to the next launch.
    next_wait = bisect_left(waits, idle_from_us - BACK_TO_BACK_US)
    waited = next_wait < len(waits) and waits[next_wait] <= launch.end_us
    return WAITING if waited else LAUNCHING


def _host_trace(operators: list[_Span], window: Interval, steps: int) -> StepTrace:
    busy_us = 0.0
    open_spans: list[_Span] = []
    for span in operators:
        while open_spans and open_spans[-1].end_us <= span.start_us:
            open_spans.pop()
        span.own_us = span.duration_us
        if open_spans:
            open_spans[-1].own_us -= span.duration_us
        else:
            busy_us += span.duration_us
        open_spans.append(span)
    whole_us = window[1] - window[0]
    return StepTrace(
        on="cpu",
        steps=steps,
        window_us=whole_us,
        ops=tuple(_ops(operators)),
        idle_us={OUTSIDE: whole_us - busy_us},
        launches=0,
    )


def _ops(spans: Iterable[_Span]) -> Iterator[TracedOp]:
    """The longest first."""
    groups: dict[tuple[str, str], list[_Span]] = {}
    for span in spans:
        groups.setdefault((span.name, span.category), []).append(span)
    made = [
        TracedOp(
            name=name,
            category=category,
            calls=len(found),
            total_us=sum(span.duration_us for span in found),
            own_us=sum(span.own_us for span in found),
        )
        for (name, category), found in groups.items()
    ]
    yield from sorted(made, key=lambda op: (-op.own_us, op.name))
