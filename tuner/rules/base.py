"""What a rule is, what it looks at, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from registry.environment import Environment, Runtime
from registry.inventory import ComponentInventory, LinearLayer, ModelInventory
from registry.plan import ComponentPlan, Dtype, LayerScheme, Plan

Kind = Literal["impossible", "useless"]
"""`impossible` fails or does nothing of what it says; `useless` runs, and never wins."""
Library = Literal["torch", "torchao", "diffusers", "transformers", "accelerate"]
Capability = tuple[int, int]


@dataclass(frozen=True)
class ComponentSubject:
    """One component of a plan, on one machine; `touched` are the layers its scheme would change."""

    inventory: ModelInventory
    component: ComponentInventory
    choice: ComponentPlan
    dtype: Dtype
    environment: Environment
    touched: tuple[LinearLayer, ...] = ()

    @property
    def quantized(self) -> bool:
        return self.choice.quantization.scheme != "none"

    @property
    def schemes(self) -> frozenset[LayerScheme]:
        return self.choice.quantization.schemes

    def touched_by(self, scheme: LayerScheme) -> tuple[LinearLayer, ...]:
        wanted = self.choice.quantization.wanted
        return tuple(layer for layer in self.touched if wanted(layer.name) == scheme)

    @property
    def compiled(self) -> bool:
        return self.choice.compilation.scope != "none"

    @property
    def offloaded(self) -> bool:
        return self.choice.placement.kind != "resident"


@dataclass(frozen=True)
class PlanSubject:
    """A whole plan, on one machine."""

    inventory: ModelInventory
    plan: Plan
    environment: Environment


Subject = TypeVar("Subject", ComponentSubject, PlanSubject)


@dataclass(frozen=True)
class Rule(Generic[Subject]):
    """Something that cannot go together, or is never worth trying.

    `reason` is a sentence a user understands; `source` is a public issue ("diffusers#13281"), the
    vendor's documentation or source file, or the test of ours that shows it. `versions` limits the
    rule to library versions, as PEP 440 specifiers: a release newer than what was seen to fail is
    tried, which costs one trial. An unknown version is taken as affected.
    """

    id: str
    kind: Kind
    reason: str
    source: str
    broken_by: Callable[[Subject], bool]
    versions: Mapping[Library, str] = field(default_factory=dict)

    def concerns(self, runtime: Runtime) -> bool:
        """Whether the installed libraries are ones the rule is about."""
        return all(
            _is_within(getattr(runtime, library), specifier)
            for library, specifier in self.versions.items()
        )


@dataclass(frozen=True)
class Violation:
    """A rule that a plan breaks; `component` names where, None for the plan as a whole."""

    rule: str
    kind: Kind
    reason: str
    source: str
    component: str | None = None
    versions: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.component}: " if self.component else ""
        public = [text for text in self.source.split("; ") if not text.startswith("tests/")]
        return f"{where}{self.reason}" + (f" ({'; '.join(public)})" if public else "")


def violation(rule: Rule[Subject], component: str | None = None) -> Violation:
    versions = tuple(f"{library}{range_}" for library, range_ in sorted(rule.versions.items()))
    return Violation(rule.id, rule.kind, rule.reason, rule.source, component, versions)


def is_cuda(environment: Environment) -> bool:
    return environment.hardware.device == "cuda"


def below(environment: Environment, needed: Capability) -> bool:
    """Whether this is a CUDA device older than `needed`; an unknown capability counts as new."""
    own = environment.hardware.compute_capability
    return is_cuda(environment) and own is not None and own < needed


def is_within(version: str | None, specifier: str) -> bool:
    """Whether an installed version is inside a PEP 440 range; False when not installed."""
    return version is not None and _is_within(version, specifier)


def _is_within(version: str | None, specifier: str) -> bool:
    if version is None:
        return True
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True
