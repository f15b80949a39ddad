"""The values of each choice that can work by themselves on one machine.

A value that fails whatever else is chosen is not crossed with the rest: one plan stands for it, so
that a user sees it once, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    Dtype,
    PipelineOptions,
    Placement,
    Plan,
    Quantization,
    Resident,
    VaeOptions,
)
from registry.workload import Workload
from tuner import choices
from tuner.choices import Ladder, Restriction
from tuner.rules import RuleBook

Value = TypeVar("Value")


@dataclass(frozen=True)
class Axes:
    """What is crossed; `rejected` holds one plan for each value that was left out. Step caches are
    crossed with nothing: only the best plans without one are tried with them."""

    dtype: Dtype
    quantizations: tuple[Quantization, ...]
    compilations: tuple[Compilation, ...]
    placements: tuple[Placement, ...]
    backends: tuple[AttentionBackend, ...]
    fusions: tuple[bool, ...]
    layouts: tuple[bool, ...]
    vaes: tuple[VaeOptions, ...]
    step_caches: tuple[Ladder, ...]
    rejected: tuple[Plan, ...]


def admissible_axes(
    inventory: ModelInventory,
    environment: Environment,
    restrict: Restriction,
    workload: Workload | None,
    mixed: Sequence[Quantization],
    book: RuleBook,
) -> Axes:
    """Every choice's values that some plan can use, within a user's restriction; `mixed` are
    quantizations beside the uniform ones."""
    filters = _Filter(inventory, environment, book)
    compilations = tuple(
        item
        for item in choices.compilations(inventory, workload)
        if allows(restrict.scopes, item.scope)
        and not (restrict.plain_compilation and choices.is_tuned(item))
    )
    return Axes(
        dtype=filters.dtype,
        quantizations=filters.quantizations(restrict, compilations, mixed),
        compilations=filters.keep(
            compilations, lambda item: [filters.plan(ComponentPlan(compilation=item))]
        ),
        placements=filters.keep(
            [
                item
                for item in (Resident(), *choices.offloads())
                if allows(restrict.placements, item.kind)
            ],
            lambda item: [filters.plan(ComponentPlan(placement=item))],
        ),
        backends=filters.keep(
            [
                item
                for item in choices.ATTENTION_BACKENDS
                if allows(restrict.attention_backends, item)
            ],
            lambda item: [filters.plan(attention_backend=item)],
        ),
        fusions=filters.keep(either(restrict.fuse_qkv), lambda item: [filters.plan(fuse_qkv=item)]),
        layouts=_layouts(inventory, restrict),
        vaes=filters.keep(
            [
                item
                for item in choices.vae_options(inventory, workload)
                if item.tiling in either(restrict.vae_tiling)
            ],
            lambda item: [filters.plan(vae=item)],
        ),
        step_caches=filters.keep(
            [item for item in choices.STEP_CACHES if allows(restrict.step_caches, item[0].kind)],
            lambda item: [filters.plan().caching_steps(item[0])],
        ),
        rejected=tuple(filters.rejected),
    )


def allows(chosen: Container[object] | None, value: object) -> bool:
    return chosen is None or value in chosen


def either(wish: bool | None) -> tuple[bool, ...]:
    return (False, True) if wish is None else (wish,)


def _layouts(inventory: ModelInventory, restrict: Restriction) -> tuple[bool, ...]:
    has_convolutions = any(item.has_convolutions for item in inventory.components)
    return either(restrict.channels_last) if has_convolutions else (False,)


class _Filter:
    """Judges one value at a time, in a plan that is plain otherwise."""

    def __init__(self, inventory: ModelInventory, environment: Environment, book: RuleBook) -> None:
        self.dtype = choices.default_dtype(environment)
        self.rejected: list[Plan] = []
        self._inventory = inventory
        self._book = book

    def plan(
        self,
        own: ComponentPlan | None = None,
        *,
        attention_backend: AttentionBackend = "default",
        fuse_qkv: bool = False,
        vae: VaeOptions | None = None,
    ) -> Plan:
        return Plan(
            pipeline=PipelineOptions(
                dtype=self.dtype,
                components={self._inventory.denoiser.name: own or ComponentPlan()},
                attention_backend=attention_backend,
                fuse_qkv=fuse_qkv,
                vae=vae or VaeOptions(),
                text_tokens=self._inventory.padded_text_tokens,
            )
        )

    def quantizations(
        self,
        restrict: Restriction,
        compilations: Iterable[Compilation],
        mixed: Sequence[Quantization],
    ) -> tuple[Quantization, ...]:
        """A scheme may need compilation, so each is tried with every kind of it."""
        uniform = choices.denoiser_quantizations(
            self._inventory, restrict.schemes, self._book.layers
        )
        return self.keep(
            [*uniform, *(item for item in mixed if allows(restrict.schemes, item.scheme))],
            lambda item: (
                self.plan(ComponentPlan(quantization=item, compilation=compilation))
                for compilation in (Compilation(), *compilations)
            ),
        )

    def keep(
        self, values: Iterable[Value], plans_of: Callable[[Value], Iterable[Plan]]
    ) -> tuple[Value, ...]:
        """The values with which some plan breaks no rule; the first plan of each other one is
        remembered as rejected."""
        return tuple(value for value in values if self._is_kept(plans_of(value)))

    def _is_kept(self, plans: Iterable[Plan]) -> bool:
        tried: list[Plan] = []
        for plan in plans:
            if not self._book.violations(plan):
                return True
            tried.append(plan)
        self.rejected.append(tried[0])
        return False
