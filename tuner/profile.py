"""Where the time of a denoiser step goes: a trace's operations by kind of work, beside the floor
that the roofline gives each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuner.kernels import WorkClass, work_class
from tuner.protocol import ProfileResult, StepTrace, TracedOp

Part = WorkClass | Literal["idle"]
MEMORY_BOUND: tuple[WorkClass, ...] = ("elementwise", "normalisation")
"""One floor for both: compiled, they are the same kernels."""
TOP_OPS = 5


@dataclass(frozen=True)
class PartTime:
    """What one kind of work takes of a step. Shares of all parts add up to 1.

    `hidden_ms` ran beside other work and costs the step nothing. `floor_ms` is the roofline's,
    None where it has none; that of "elementwise" is for `MEMORY_BOUND` together. `top` are the
    operations that took most, each with its milliseconds a step.
    """

    part: Part
    ms: float
    share: float
    hidden_ms: float = 0.0
    calls: float = 0.0
    floor_ms: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class StepProfile:
    """A step's parts, the longest first. `traced_ms` is a step while it was traced, `step_ms` one
    before: shares are of the first. `idle_ms` is by cause, as in `tuner.traces`."""

    on: Literal["cuda", "cpu"]
    steps: int
    step_ms: float
    traced_ms: float
    parts: tuple[PartTime, ...]
    idle_ms: Mapping[str, float]
    launches: float
    graph_breaks: Mapping[str, int]
    recompiles: tuple[str, ...]
    graphs: int

    def part(self, name: Part) -> PartTime | None:
        return next((item for item in self.parts if item.part == name), None)

    @property
    def memory_bound_ms(self) -> float:
        """What the floor of "elementwise" is the floor of."""
        return sum(item.ms for item in self.parts if item.part in MEMORY_BOUND)

    def over_floor(self, item: PartTime) -> float | None:
        """How many times its floor a part takes; None without one."""
        if not item.floor_ms:
            return None
        return (self.memory_bound_ms if item.part == "elementwise" else item.ms) / item.floor_ms


def step_profile(result: ProfileResult, floors_ms: Mapping[WorkClass, float]) -> StepProfile:
    """The profile of one plan; `floors_ms` as `tuner.floors.step_floors_ms` gives them."""
    trace = result.trace
    return StepProfile(
        on=trace.on,
        steps=trace.steps,
        step_ms=result.trial.measurement.step_ms,
        traced_ms=trace.window_us / trace.steps / 1000,
        parts=parts_of(trace, floors_ms),
        idle_ms={cause: us / trace.steps / 1000 for cause, us in trace.idle_us.items()},
        launches=trace.launches / trace.steps,
        graph_breaks=dict(result.graph_breaks),
        recompiles=result.recompiles,
        graphs=result.trial.measurement.graphs,
    )


def parts_of(trace: StepTrace, floors_ms: Mapping[WorkClass, float]) -> tuple[PartTime, ...]:
    """Every kind of work that the trace holds, and idle time, the longest first."""
    groups: dict[WorkClass, list[TracedOp]] = {}
    for op in trace.ops:
        groups.setdefault(work_class(op), []).append(op)
    parts = [_part(name, ops, trace, floors_ms.get(name)) for name, ops in groups.items()]
    idle_us = sum(trace.idle_us.values())
    parts.append(PartTime("idle", idle_us / trace.steps / 1000, _share(idle_us, trace)))
    return tuple(sorted(parts, key=lambda item: (-item.ms, item.part)))


def _part(
    name: WorkClass, ops: Sequence[TracedOp], trace: StepTrace, floor_ms: float | None
) -> PartTime:
    own_us = sum(op.own_us for op in ops)
    hidden_us = sum(op.total_us for op in ops) - own_us if trace.on == "cuda" else 0.0
    return PartTime(
        part=name,
        ms=own_us / trace.steps / 1000,
        share=_share(own_us, trace),
        hidden_ms=hidden_us / trace.steps / 1000,
        calls=sum(op.calls for op in ops) / trace.steps,
        floor_ms=floor_ms,
        top=tuple(_top(ops, trace.steps)),
    )


def _top(ops: Iterable[TracedOp], steps: int) -> Iterable[tuple[str, float]]:
    longest = sorted(ops, key=lambda op: (-op.own_us, op.name))[:TOP_OPS]
    return ((op.name, op.own_us / steps / 1000) for op in longest)


def _share(us: float, trace: StepTrace) -> float:
    return us / trace.window_us if trace.window_us else 0.0
