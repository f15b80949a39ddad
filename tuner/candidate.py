"""A plan worth considering, with what is predicted for it."""

from __future__ import annotations

from dataclasses import dataclass

from registry.plan import Plan
from registry.record import Estimate


@dataclass(frozen=True)
class Candidate:
    """One valid plan and the estimate it is ranked by until something is measured."""

    plan: Plan
    estimate: Estimate


UNCACHED = "every step computed"
"""In the source of an estimate of a plan that caches steps: how many it will compute is not known
before whole requests are run, and blocks or rooflines do not say."""


def uncached_estimate(estimate: Estimate) -> Estimate:
    """As it stands for a plan that caches steps: of the plan without that, and said to be."""
    return estimate.model_copy(update={"source": f"{estimate.source}, {UNCACHED}"})


@dataclass(frozen=True)
class Offer:
    """The best plan that may be given out unmeasured, and `note`, what the policy left out.

    Without a `candidate` the rest says why: what the smallest plans need (`smallest_vram_bytes`
    None: rules leave no plan at all; `smallest_host_bytes` None: none is within the device's
    budget), and whether one fits that the policy wants measured first.
    """

    candidate: Candidate | None
    note: str | None = None
    smallest_vram_bytes: int | None = None
    smallest_host_bytes: int | None = None
    others_fit: bool = False
