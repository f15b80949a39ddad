"""Step caches on the model that draws: what they gain, and what they do to pictures.

Speed is measured here, a picture a request, each cache in turn with the plan that computes every
step; quality comes from the held-out pictures (`collect held-out`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from benchmarks.quality.drawing import STEPS, draw, load_pipeline
from benchmarks.quality.pairs import pairs
from benchmarks.quality.scores import Results
from benchmarks.quality.thresholds import POLICY_NAMES, verdicts
from benchmarks.quality.treatments import TREATMENTS, of_kind, plan_of

REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Of one cache: whole steps of a request, its seconds, and those of the plan without it, timed
    in turn with it; medians."""

    treatment: str
    whole_steps: float
    latency_s: float
    plain_s: float


def speeds() -> Iterator[Speed]:
    plain, some = load_pipeline(plan_of()), pairs("held-out")[:REPEATS]
    draw(plain, some[:1])
    for name in of_kind("cached"):
        pipe = load_pipeline(TREATMENTS[name].plan)
        draw(pipe, some[:1])
        with _counted(pipe.transformer.transformer_blocks[1]) as calls:
            times = [(_latency_s(pipe, pair), _latency_s(plain, pair)) for pair in some]
        ours, theirs = zip(*times, strict=True)
        yield Speed(name, calls[0] / len(some), median(ours), median(theirs))


def _latency_s(pipe: Any, pair: Any) -> float:
    return draw(pipe, [pair]).latency_s


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
    """As a table of Markdown; passes under each policy as plans of four pictures."""
    lines = [
        f"| step cache | whole steps of {STEPS} | a request | speed-up | PSNR | its gain | "
        + " | ".join((*POLICY_NAMES, "fidelity |")),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    judged = {item.treatment: item for item in verdicts(found)}
    for item in measured:
        name, verdict = item.treatment, judged[item.treatment]
        passes = " | ".join(
            f"{passed}/{verdict.plans}"
            for _, passed in zip(POLICY_NAMES, verdict.passed_as_plan, strict=True)
        )
        lines.append(
            f"| {name} | {item.whole_steps:.1f} | {item.latency_s:.2f} s "
            f"| {item.plain_s / item.latency_s:.2f}× | {fmean(found.values(name, 'psnr_db')):.1f} "
            f"dB | {fmean(found.values(name, 'psnr_gain_db')):.1f} dB | {passes} "
            f"| {fmean(found.fidelity(name)):.3f} |"
        )
    return "\n".join(lines)
