"""What can be said of a plan on this machine without running it: rules, estimates, the best guess.

The libraries of prediction are loaded at the first question, since most answers need none.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import Estimate
from registry.workload import Workload
from tuner.candidate import Candidate

if TYPE_CHECKING:
    from tuner.cost_model import CostModel


class Foresight:
    """Predictions for one model, from its inventory, on one machine."""

    def __init__(self, inventory: ModelInventory, environment: Environment) -> None:
        self._inventory = inventory
        self._environment = environment

    def refusals(self, plan: Plan) -> tuple[str, ...]:
        """Why today's rules refuse the plan here; empty if they do not. A plan that is merely
        useless is not refused: it runs."""
        from tuner.rules import violations

        broken = violations(plan, self._inventory, self._environment)
        return tuple(str(item) for item in broken if item.kind == "impossible")

    def estimate(self, plan: Plan, workload: Workload) -> Estimate:
        return self._cost_model.estimate(plan, workload)

    def best(
        self, workload: Workload, budget_bytes: int, host_budget_bytes: int | None
    ) -> tuple[Candidate | None, int | None]:
        """The best surveyed plan that is predicted to fit, None if none is; and the bytes that the
        smallest plan needs, None where rules leave no plan at all."""
        from tuner.space import survey

        found = survey(
            self._inventory,
            self._environment,
            workload,
            budget_bytes,
            host_budget_bytes,
            self._cost_model,
        )
        fitting = [c for c in found.kept if c.estimate.peak_vram_bytes <= budget_bytes]
        best = min(fitting, key=lambda item: item.estimate.latency_s, default=None)
        return best, found.smallest_budget_bytes

    @cached_property
    def _cost_model(self) -> CostModel:
        from tuner.cost_model import CostModel

        return CostModel(self._inventory, self._environment.hardware)
