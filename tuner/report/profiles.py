"""A step's profile as people read it: what it says in sentences, and a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from tuner.profile import Part, PartTime, StepProfile
from tuner.report.tables import table
from tuner.report.text import first_line
from tuner.traces import BETWEEN, LAUNCHING, OTHER_STREAM, OUTSIDE, WAITING
from tuner.units import format_seconds

NAMES: dict[Part, str] = {
    "matmul": "matrix multiplication",
    "attention": "attention",
    "convolution": "convolution",
    "normalisation": "normalisation",
    "elementwise": "quantization, element-wise and fused kernels",
    "copies": "copies between host and device",
    "overhead": "views and dispatching",
    "other": "kernels of no known kind",
    "idle": "idle",
}
CAUSES = {
    LAUNCHING: "the host had not launched the next kernel yet: compile, or launch fewer and larger "
    "ones",
    WAITING: "the host waited for the device before it launched more: something reads a value back "
    "(.item(), a copy that blocks)",
    OTHER_STREAM: "the next kernel was launched and waited for a copy or another stream",
    BETWEEN: "pauses of a few microseconds between kernels, one after each",
    OUTSIDE: "Python between the operators: the scheduler, hooks, the pipeline's own loop",
}
WORTH_A_SENTENCE = 0.02
"""Of the step: less than this is in the table alone."""
NEAR_FLOOR = 1.1
SHOWN_REASONS = 5
NAME_WIDTH = 72
REASON_WIDTH = 160


def sentences(profile: StepProfile) -> Iterator[str]:
    """What the profile says, the most important first."""
    yield (
        f"A step takes {_ms(profile.step_ms)}; {_ms(profile.traced_ms)} while it was traced, over "
        f"{profile.steps} steps."
    )
    for item in profile.parts:
        if item.share >= WORTH_A_SENTENCE and item.part != "idle":
            yield _part(item, profile)
    yield from _hidden(profile)
    yield from _idle(profile)
    yield from _graphs(profile)


def parts_table(profile: StepProfile) -> Table:
    """Every part with its share, its floor and how far it is from it."""
    rows = (
        (
            NAMES[item.part],
            _ms(item.ms),
            f"{item.share:.0%}",
            f"{item.calls:.0f}" if item.calls else "",
            "–" if item.floor_ms is None else _ms(item.floor_ms),
            _over(item, profile),
        )
        for item in profile.parts
    )
    return table("Part of a step", ">Time", ">Share", ">Calls", ">Floor", ">Over floor", rows=rows)


def longest_table(profile: StepProfile) -> Table:
    """The single operations that take most."""
    every = [(ms, item.part, name) for item in profile.parts for name, ms in item.top if ms > 0]
    longest = sorted(every, reverse=True)[:10]
    rows = ((_ms(ms), NAMES[part], _cut(name)) for ms, part, name in longest)
    return table(">A step", "Kind", "Kernel or operator", rows=rows)


def difference_table(plan: StepProfile, baseline: StepProfile) -> Table:
    """Part by part, what the plan gains over the baseline and what it pays for it."""
    names = {item.part: None for item in (*baseline.parts, *plan.parts)}
    rows = []
    for name in names:
        theirs, ours = _part_ms(baseline, name), _part_ms(plan, name)
        rows.append((NAMES[name], _ms(theirs), _ms(ours), f"{ours - theirs:+.3g} ms"))
    return table("Part of a step", ">Baseline", ">Plan", ">Difference", rows=rows)


def _part_ms(profile: StepProfile, name: Part) -> float:
    item = profile.part(name)
    return 0.0 if item is None else item.ms


def _part(item: PartTime, profile: StepProfile) -> str:
    start = f"{item.share:.0%} of the step is {NAMES[item.part]} ({_ms(item.ms)})"
    over = profile.over_floor(item)
    if over is None or item.floor_ms is None:
        return f"{start}."
    start += "; with normalisation it is" if item.part == "elementwise" else ","
    if over <= NEAR_FLOOR:
        return f"{start} near the floor of {_ms(item.floor_ms)}."
    return f"{start} {over:.1f} times the floor of {_ms(item.floor_ms)}."


def _hidden(profile: StepProfile) -> Iterator[str]:
    copies = profile.part("copies")
    if copies is not None and copies.hidden_ms > WORTH_A_SENTENCE * profile.traced_ms:
        yield f"{_ms(copies.hidden_ms)} more of copies are hidden behind computing."


def _idle(profile: StepProfile) -> Iterator[str]:
    idle = profile.part("idle")
    if idle is None or idle.share < WORTH_A_SENTENCE:
        return
    who = "the GPU does nothing" if profile.on == "cuda" else "no operator runs"
    cause, ms = max(profile.idle_ms.items(), key=lambda item: item[1])
    yield f"{idle.share:.0%} of the step {who} ({_ms(idle.ms)})."
    launched = f" ({profile.launches:.0f} launches a step)" if cause == LAUNCHING else ""
    why = CAUSES.get(cause, cause)
    yield f"The likely cause, in {_ms(ms)} of it: {why}{launched}."


def _graphs(profile: StepProfile) -> Iterator[str]:
    if not profile.graphs:
        yield "Nothing of it is compiled."
        return
    breaks = sum(profile.graph_breaks.values())
    if not breaks:
        yield f"{profile.graphs} compiled graphs, no graph breaks."
    else:
        yield f"{profile.graphs} compiled graphs, and graph breaks, {breaks} in all:"
        yield from (f"  {count}× {reason}" for reason, count in _most(profile))
    if profile.recompiles:
        yield f"Compiled again, {len(profile.recompiles)} in all:"
        shown = profile.recompiles[:SHOWN_REASONS]
        yield from (f"  {_cut(reason, REASON_WIDTH)}" for reason in shown)


def _most(profile: StepProfile) -> list[tuple[str, int]]:
    return sorted(profile.graph_breaks.items(), key=lambda item: -item[1])[:SHOWN_REASONS]


def _over(item: PartTime, profile: StepProfile) -> str:
    over = profile.over_floor(item)
    return "–" if over is None else f"{over:.2f}×"


def _cut(name: str, width: int = NAME_WIDTH) -> str:
    return first_line(" ".join(name.split()), width)


def _ms(value: float) -> str:
    return format_seconds(value / 1000)
