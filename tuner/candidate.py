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
