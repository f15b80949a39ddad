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
