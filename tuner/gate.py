"""Is the picture kept? Scores against the reference held to a policy; and does a result repeat?

The thresholds are data, in `tuner.policies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from registry.record import Measurement, Policy, Quality, QualityScore
from tuner import confidence
from tuner.confidence import Bound
from tuner.objective import MAD_FACTOR, latency_mad_s
from tuner.policies import (
    CALIBRATED,
    LOWER_IS_BETTER,
    POLICIES,
    REQUIRED,
    SPREAD,
    UNCALIBRATED_METRICS,
    Metric,
)

CEILING_DB = 120.0
"""Decibels of a result equal to the reference, where the error is zero and the ratio infinite."""

LATENCY_TOLERANCE = 0.05
PEAK_TOLERANCE = 0.02
PEAK_FLOOR_BYTES = 32 * 2**20
"""Below this a difference is the allocator's segment size, or on a CPU what imports mapped."""
MIN_SAMPLES_FOR_NOISE = 5
SD_PER_MAD = 1.4826
MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean: the square root of pi / 2."""


def judge(
    scores: Sequence[QualityScore],
    policy_name: Policy,
    calibrated: bool,
    nonfinite: Sequence[str] = (),
) -> Quality:
    """The verdict of a policy. With trained weights (`calibrated`) the mean over pictures of each
    metric whose spread is known must surely be accepted, whatever luck had with its seeds; of every
    other metric each single score.

    `nonfinite` names each score that was NaN or infinite and so could not be a QualityScore; one is
    enough to reject. No score of the required metric rejects too: nothing was compared.
    """
    held = singly_held(calibrated)
    reasons = [f"{text}: not a finite number" for text in nonfinite]
    if not any(score.metric == REQUIRED for score in scores):
        reasons.append(f"no {REQUIRED} score: the denoiser was not compared with the reference")
    failing = [score for score in scores if score.metric in held and _fails(score, policy_name)]
    reasons += [_reason(score, policy_name) for score in failing]
    if calibrated:
        reasons += [_doubt(item, policy_name) for item in confidence.unsure(scores, policy_name)]
    return Quality(
        policy=policy_name,
        passed=not reasons,
        calibrated=calibrated,
        worst=_worst(scores),
        scores=tuple(scores),
        reasons=tuple(reasons),
    )


def rejection(quality: Quality) -> tuple[str, ...]:
    """Why a policy refused, a line for each metric: its worst score, what is accepted, and how
    many scores fail of how many. Reasons that are no score's stay as they are."""
    held = [item for item in quality.scores if item.metric in singly_held(quality.calibrated)]
    failing = [item for item in held if _fails(item, quality.policy)]
    told = {_reason(item, quality.policy) for item in failing}
    others = [text for text in quality.reasons if text not in told]
    metrics = dict.fromkeys(item.metric for item in failing)
    return (*others, *(_summary(name, failing, held, quality.policy) for name in metrics))


def _summary(
    metric: Metric,
    failing: Sequence[QualityScore],
    held: Sequence[QualityScore],
    policy_name: Policy,
) -> str:
    values = [item.value for item in failing if item.metric == metric]
    all_of_it = sum(item.metric == metric for item in held)
    is_lower = metric in LOWER_IS_BETTER
    worst, side = (max(values), "over") if is_lower else (min(values), "under")
    return (
        f"{metric} {worst:.4g} at worst, {side} {POLICIES[policy_name][metric]:g} "
        f"in {len(values)} of {all_of_it} scores"
    )


def singly_held(calibrated: bool) -> frozenset[Metric]:
    """Metrics of which each score must be accepted."""
    return frozenset(get_args(Metric)) - SPREAD.keys() if calibrated else UNCALIBRATED_METRICS


def is_open(scores: Sequence[QualityScore], policy_name: Policy, calibrated: bool) -> bool:
    """Whether scores of more seeds could turn a refusal into a pass. Never with random weights,
    of which each score is held."""
    if not calibrated:
        return False
    held = singly_held(calibrated)
    refused = any(score.metric in held and _fails(score, policy_name) for score in scores)
    return not refused and confidence.is_open(scores, policy_name)


def satisfies(quality: Quality, policy_name: Policy) -> bool:
    """Whether evidence that passed one policy also meets `policy_name`."""
    if not quality.passed or quality.policy == policy_name:
        return quality.passed
    return judge(quality.scores, policy_name, quality.calibrated).passed


def failed_metrics(quality: Quality) -> frozenset[Metric]:
    """Held metrics that the quality's own policy refuses."""
    held = singly_held(quality.calibrated)
    scores, policy_name = quality.scores, quality.policy
    failing = {item.metric for item in scores if item.metric in held and _fails(item, policy_name)}
    doubts = confidence.unsure(scores, policy_name) if quality.calibrated else ()
    return frozenset(failing | {item.metric for item in doubts})


@dataclass(frozen=True)
class Repeat:
    """What keeps a replay from repeating the measurement it was made from; empty if it does.

    `substance` lies in the plan and would be there again; `timing` may be chance or load, and says
    nothing about the plan until it was tried again.
    """

    substance: tuple[str, ...] = ()
    timing: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        return (*self.substance, *self.timing)


def compare_replay(proved: Measurement, replayed: Measurement) -> Repeat:
    """A replay may be faster or smaller. It may not peak over 2% higher, resolve other layers, or
    be slower than the spread of what it repeats allows: max(5%, three median absolute deviations of
    five or more samples of `proved`). Its own spread excuses nothing: a replay whose median is less
    certain than that is no proof, however it came out.
    """
    if proved.latency_s is None or replayed.latency_s is None:
        return Repeat(substance=("whole requests were not timed",))
    allowed_s = max(LATENCY_TOLERANCE * proved.latency_s, MAD_FACTOR * _known_mad_s(proved))
    return Repeat(
        substance=(*_peak_problem(proved, replayed), *_layer_problems(proved, replayed)),
        timing=tuple(_timing_problems(proved.latency_s, replayed, allowed_s)),
    )


def _timing_problems(before_s: float, replayed: Measurement, allowed_s: float) -> Iterator[str]:
    after_s, doubt_s = replayed.latency_s or 0.0, _doubt_s(replayed)
    if doubt_s > allowed_s:
        yield f"times too unsteady: {after_s:.3f} ± {doubt_s:.3f} s; allowed ± {allowed_s:.3f} s"
    elif after_s > before_s + allowed_s:
        yield f"latency {after_s:.3f} s, was {before_s:.3f} s; allowed {allowed_s:.3f} s more"


def _known_mad_s(measured: Measurement) -> float:
    """Of fewer than five samples the spread is not known, and counts as none."""
    return latency_mad_s(measured) if _fewest_samples(measured) >= MIN_SAMPLES_FOR_NOISE else 0.0


def _doubt_s(measured: Measurement) -> float:
    """Two standard errors of the median, taking the samples for normally distributed."""
    error_s = MEDIAN_ERROR * SD_PER_MAD * _known_mad_s(measured)
    return 2.0 * error_s / math.sqrt(max(1, _fewest_samples(measured)))


def _fewest_samples(measured: Measurement) -> int:
    return min(len(item.latency_samples_s) for item in measured.shapes)


def _peak_problem(proved: Measurement, replayed: Measurement) -> Iterator[str]:
    before, after = proved.memory.peak_vram_bytes, replayed.memory.peak_vram_bytes
    allowed = max(round(PEAK_TOLERANCE * before), PEAK_FLOOR_BYTES)
    if after > before + allowed:
        yield f"peak memory {after} bytes, was {before}; allowed {allowed} bytes more"


def _layer_problems(proved: Measurement, replayed: Measurement) -> Iterator[str]:
    if proved.layer_types == replayed.layer_types:
        return
    for name in sorted(set(proved.layer_types) | set(replayed.layer_types)):
        before, after = proved.layer_types.get(name, {}), replayed.layer_types.get(name, {})
        if dict(before) != dict(after):
            yield f"layers of {name} resolved to {dict(after)}, were {dict(before)}"


def _fails(score: QualityScore, policy_name: Policy) -> bool:
    threshold = POLICIES[policy_name][score.metric]
    if score.metric in LOWER_IS_BETTER:
        return not score.value <= threshold
    return not score.value >= threshold


def _reason(score: QualityScore, policy_name: Policy) -> str:
    threshold = POLICIES[policy_name][score.metric]
    bound = "over the most" if score.metric in LOWER_IS_BETTER else "under the least"
    step = "" if score.step is None else f", step {score.step}"
    return (
        f"{score.metric} {score.value:.4g} is {bound} that {policy_name} accepts, {threshold:g} "
        f"(seed {score.seed}, prompt {score.prompt!r}, {score.shape.label}{step})"
    )


def _doubt(bound: Bound, policy_name: Policy) -> str:
    least = CALIBRATED[policy_name][bound.metric]
    word = "under" if bound.is_surely_under(least) else "not surely over"
    return (
        f"{bound.metric} {bound.mean:.4g} ± {bound.margin:.2g} in {bound.pictures} pictures of "
        f"{bound.shape.label} is {word} the least that {policy_name} accepts, {least:g}"
    )


def _worst(scores: Sequence[QualityScore]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for score in scores:
        pick = max if score.metric in LOWER_IS_BETTER else min
        worst[score.metric] = pick(worst.get(score.metric, score.value), score.value)
    return worst
