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
from tuner.candidate import Offer
from tuner.matching import Request

if TYPE_CHECKING:
    from tuner.cost_model import CostModel
    from tuner.experience import Experience


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

    def best(self, request: Request, experience: Experience | None = None) -> Offer:
        """The best plan that may be given out unmeasured and has nothing `against` it, or why there
        is none."""
        from tuner.offers import Offers

        against = None if experience is None else experience.against
        offers = Offers(self._inventory, self._environment, self._cost_model, against)
        return offers.best(request)

    @cached_property
    def _cost_model(self) -> CostModel:
        from tuner.cost_model import CostModel

        isa = self._environment.runtime.cpu_isa
        return CostModel(self._inventory, self._environment.hardware, cpu_isa=isa)
