"""Step caches on the model that draws: what they gain, and what they do to pictures.

Speed is measured here, a picture a request, each cache in turn with the plan that computes every
step: in the process's own CPU time, on which others on a shared machine weigh less than on the
clock's. Quality comes from the held-out pictures (`collect held-out`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from benchmarks.quality.drawing import STEPS, draw, load_pipeline
from benchmarks.quality.pairs import Pair, pairs
from benchmarks.quality.scores import Results
from benchmarks.quality.thresholds import POLICY_NAMES, Verdicts, verdicts
from benchmarks.quality.treatments import TREATMENTS, of_kind, plan_of

REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Of one cache: whole steps of a request, its CPU seconds, and how many times as many the plan
    without it took for the same picture just after; medians."""

    treatment: str
    whole_steps: float
    cpu_s: float
    speedup: float


def speeds() -> Iterator[Speed]:
    plain, some = load_pipeline(plan_of()), pairs("held-out")[:REPEATS]
    draw(plain, some[:1])
    for name in of_kind("cached"):
        pipe = load_pipeline(TREATMENTS[name].plan)
        draw(pipe, some[:1])
        with _counted(pipe.transformer.transformer_blocks[1]) as calls:
            times = [(_cpu_s(pipe, pair), _cpu_s(plain, pair)) for pair in some]
        yield Speed(
            name,
            calls[0] / len(some),
            median(ours for ours, _ in times),
            median(theirs / ours for ours, theirs in times),
        )


def _cpu_s(pipe: Any, pair: Pair) -> float:
    start = time.process_time()
    draw(pipe, [pair])
    return time.process_time() - start


@contextmanager
def _counted(block: Any) -> Iterator[list[int]]:
    """How often a block's attention is computed: hooks of a cache call the block for nothing."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = block.attn.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def caches_text(measured: Sequence[Speed], found: Results) -> str:
    """As a table of Markdown. `strict` is left out: it admits no step cache."""
    columns = ("step cache", f"whole steps of {STEPS}", "CPU time", "speed-up", "PSNR", "its gain")
    judged = ("balanced, alone", "balanced, as plans", "fast, as plans", "fidelity")
    lines = [_row((*columns, *judged)), "|" + "---|" * len((*columns, *judged))]
    known = {item.treatment: item for item in verdicts(found)}
    return "\n".join(
        [*lines, *(_row(_cells(item, known[item.treatment], found)) for item in measured)]
    )


def _cells(item: Speed, verdict: Verdicts, found: Results) -> tuple[str, ...]:
    name = item.treatment
    balanced, fast = POLICY_NAMES.index("balanced"), POLICY_NAMES.index("fast")
    return (
        name,
        f"{item.whole_steps:.1f}",
        f"{item.cpu_s:.2f} s",
        f"{item.speedup:.2f}×",
        f"{fmean(found.values(name, 'psnr_db')):.1f} dB",
        f"{fmean(found.values(name, 'psnr_gain_db')):.1f} dB",
        f"{verdict.passed_alone[balanced]}/{verdict.pictures}",
        f"{verdict.passed_as_plan[balanced]}/{verdict.plans}",
        f"{verdict.passed_as_plan[fast]}/{verdict.plans}",
        f"{fmean(found.fidelity(name)):.3f}",
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
