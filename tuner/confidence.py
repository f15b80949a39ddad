"""How sure a few pictures make us of a metric's mean over all prompts and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from registry.record import Policy, QualityScore
from registry.workload import Shape
from tuner.policies import CALIBRATED, SPREAD, Metric

Z_95 = 1.645
"""One-sided 95% of a normal distribution."""
SPREADS_OVER_STRICT = 3.0
"""Better than that tells nothing more: a picture that happens to be the reference's to the bit must
not make its neighbours look uncertain."""


@dataclass(frozen=True)
class Bound:
    """The mean of `pictures` values of one metric and shape; it is `margin` away from the true one,
    in one direction, with 95% confidence."""

    metric: Metric
    shape: Shape
    mean: float
    margin: float
    pictures: int

    def is_surely_over(self, least: float) -> bool:
        return self.mean - self.margin >= least

    def is_surely_under(self, least: float) -> bool:
        return self.mean + self.margin < least


def bounds(scores: Iterable[QualityScore]) -> tuple[Bound, ...]:
    """One for each shape and each metric whose spread is known. A picture counts by the worst of
    its steps; the doubt is the known spread's, or theirs where they differ more than that."""
    found: dict[tuple[Metric, Shape], dict[tuple[str, int], float]] = {}
    for score in scores:
        if score.metric in SPREAD:
            pictures = found.setdefault((score.metric, score.shape), {})
            pair = (score.prompt, score.seed)
            value = min(score.value, _most(score.metric))
            pictures[pair] = min(value, pictures.get(pair, value))
    return tuple(_bound(*key, list(values.values())) for key, values in found.items())


def _bound(metric: Metric, shape: Shape, values: list[float]) -> Bound:
    spread = max(SPREAD[metric], stdev(values) if len(values) > 1 else 0.0)
    margin = Z_95 * spread / math.sqrt(len(values))
    return Bound(metric, shape, fmean(values), margin, len(values))


def _most(metric: Metric) -> float:
    return CALIBRATED["strict"][metric] + SPREADS_OVER_STRICT * SPREAD[metric]


def unsure(scores: Iterable[QualityScore], policy_name: Policy) -> tuple[Bound, ...]:
    """Bounds that the policy does not accept: too low, or not yet surely high enough."""
    least = CALIBRATED[policy_name]
    return tuple(item for item in bounds(scores) if not item.is_surely_over(least[item.metric]))


def is_open(scores: Iterable[QualityScore], policy_name: Policy) -> bool:
    """Whether more pictures could turn a refusal into a pass: something is unsure, and nothing
    surely too low."""
    least, doubtful = CALIBRATED[policy_name], unsure(scores, policy_name)
    return bool(doubtful) and not any(item.is_surely_under(least[item.metric]) for item in doubtful)
