"""A candidate with everything about it that no trial changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from registry.plan import Plan
from registry.record import Estimate
from tuner.candidate import Candidate
from tuner.objective import Judge
from tuner.search.features import (
    complexity,
    denoiser_features,
    denoiser_picture,
    denoiser_signature,
    features,
    picture,
    placements,
    rounding,
)
from tuner.search.surrogate import with_pairs

ESTIMATE_GRAIN = 0.005
"""Estimates closer than this share are equal, and the simpler plan comes first."""


@dataclass(frozen=True)
class Entry:
    """`denoiser_choices` are those that step time depends on; `tried_together` are all the plan's
    choices, and the pairs of them that a trial also tries.

    Plans of one `denoiser` have one step time. Plans of one `picture` or `denoiser_picture` make
    the same picture but for rounding; both are None where nothing is quantized or cached. Plans of
    one `rounding` have the same kernels around their quantized layers.
    """

    plan: Plan
    estimate: Estimate
    digest: str
    tried_together: frozenset[str]
    denoiser_choices: frozenset[str]
    denoiser: str
    denoiser_picture: str | None
    picture: str | None
    rounding: str
    placements: str
    complexity: int
    estimated_s: float
    over_budget: bool

    @property
    def caches_steps(self) -> bool:
        """Whether step times say nothing of its requests: whole ones must be timed."""
        return self.plan.pipeline.step_cache is not None

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """Those predicted to fit, the best estimate first, then the simplest."""
        grains = round(math.log(self.estimated_s) / ESTIMATE_GRAIN)
        return (self.over_budget, grains, self.complexity, self.digest)


def make_entry(
    candidate: Candidate, digest: str, judge: Judge, denoiser: str, budget_bytes: int | None
) -> Entry:
    """`digest` is the plan's, `denoiser` the component's name; `budget_bytes` None is no limit."""
    plan = candidate.plan
    return Entry(
        plan=plan,
        estimate=candidate.estimate,
        digest=digest,
        tried_together=with_pairs(features(plan, denoiser)),
        denoiser_choices=denoiser_features(plan, denoiser),
        denoiser=denoiser_signature(plan, denoiser),
        denoiser_picture=denoiser_picture(plan, denoiser),
        picture=picture(plan),
        rounding=rounding(plan, denoiser),
        placements=placements(plan),
        complexity=complexity(plan),
        estimated_s=judge.estimated(plan, candidate.estimate),
        over_budget=budget_bytes is not None and candidate.estimate.peak_vram_bytes > budget_bytes,
    )
