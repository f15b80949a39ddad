"""What cannot go together, since which version, and why.

`violations` judges one plan; a `RuleBook` judges many plans of one model on one machine, and looks
at each component's choice once.
"""

from __future__ import annotations

from registry.environment import Environment
from registry.inventory import ComponentInventory, ModelInventory
from registry.plan import ComponentPlan, Dtype, Plan
from tuner.layers import LayerTable
from tuner.rules import attention, compilation, pipeline, placement, quantization, step_cache
from tuner.rules.base import (
    ComponentSubject,
    Kind,
    PlanSubject,
    Rule,
    Violation,
    violation,
)

COMPONENT_RULES: tuple[Rule[ComponentSubject], ...] = (
    *quantization.RULES,
    *compilation.RULES,
    *placement.RULES,
    *pipeline.COMPONENT_RULES,
)
PLAN_RULES: tuple[Rule[PlanSubject], ...] = (
    *pipeline.RULES,
    *attention.RULES,
    *step_cache.RULES,
)
RULES: tuple[Rule[ComponentSubject] | Rule[PlanSubject], ...] = (*PLAN_RULES, *COMPONENT_RULES)
"""Every rule, in the order in which a plan is judged."""

__all__ = ["RULES", "Kind", "Rule", "RuleBook", "Violation", "violations"]


def violations(
    plan: Plan, inventory: ModelInventory, environment: Environment
) -> tuple[Violation, ...]:
    """Every rule that a plan breaks for this model on this machine; empty when it may be tried.

    A violation of kind "impossible" would fail; one of kind "useless" runs and never wins.
    """
    return RuleBook(inventory, environment).violations(plan)


class RuleBook:
    """The rules that concern one model on one machine. Remembers its verdicts.

    `layers` are the model's, where something else remembers them already.
    """

    def __init__(
        self,
        inventory: ModelInventory,
        environment: Environment,
        layers: LayerTable | None = None,
    ) -> None:
        self.layers = layers or LayerTable()
        self._inventory = inventory
        self._environment = environment
        runtime = environment.runtime
        self._plan_rules = [rule for rule in PLAN_RULES if rule.concerns(runtime)]
        self._component_rules = [rule for rule in COMPONENT_RULES if rule.concerns(runtime)]
        self._components = {item.name: item for item in inventory.components}
        self._options: dict[tuple[object, ...], tuple[Violation, ...]] = {}
        # By identity: hashing a choice costs more than judging it. The choice is kept beside the
        # verdict, so its identity cannot be given to another.
        self._judged: dict[tuple[str, Dtype, int], tuple[ComponentPlan, tuple[Violation, ...]]] = {}

    def violations(self, plan: Plan) -> tuple[Violation, ...]:
        """As the module's `violations`."""
        found = self._plan(plan)
        for name, choice in plan.pipeline.components.items():
            if name in self._components:
                found += self.of_component(name, choice, plan.pipeline.dtype)
        return found

    def _plan(self, plan: Plan) -> tuple[Violation, ...]:
        """Rules on the whole plan look at these options and at the components' names only; those
        of step caches at the denoiser too."""
        options = plan.pipeline
        if options.step_cache is not None:
            return self._broken(plan)
        key = (
            *(options.dtype, options.attention_backend, options.fuse_qkv, options.text_tokens),
            *(options.vae.tiling, options.vae.slicing, *options.components),
        )
        if key not in self._options:
            self._options[key] = self._broken(plan)
        return self._options[key]

    def _broken(self, plan: Plan) -> tuple[Violation, ...]:
        subject = PlanSubject(self._inventory, plan, self._environment)
        return tuple(violation(rule) for rule in self._plan_rules if rule.broken_by(subject))

    def of_component(self, name: str, choice: ComponentPlan, dtype: Dtype) -> tuple[Violation, ...]:
        """The rules that one component's choice breaks by itself, whatever the plan around it."""
        key = (name, dtype, id(choice))
        if key not in self._judged:
            self._judged[key] = (choice, self._judge(self._components[name], choice, dtype))
        return self._judged[key][1]

    def _judge(
        self, component: ComponentInventory, choice: ComponentPlan, dtype: Dtype
    ) -> tuple[Violation, ...]:
        subject = ComponentSubject(
            self._inventory,
            component,
            choice,
            dtype,
            self._environment,
            self.layers.quantized(component, choice.quantization),
        )
        broken = (rule for rule in self._component_rules if rule.broken_by(subject))
        return tuple(violation(rule, component.name) for rule in broken)
