"""What a study is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from registry.digest import digest
from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.record import Measurement, Objective, Policy, TuningRecord
from registry.workload import Workload
from tuner import catalog
from tuner.audit import AuditReport
from tuner.front import Place
from tuner.model_spec import ModelSpec
from tuner.search import Known
from tuner.space import SPACE_VERSION

DEFAULT_PROMPTS = (
    "a red circle left of a blue square on white paper",
    "a lighthouse on a cliff at dusk, waves below, oil painting",
)
DEFAULT_SEEDS = (0, 1)


def default_prompts(model: ModelSpec) -> tuple[str, ...]:
    """What pictures are compared on where the user names no prompt."""
    own = catalog.entry(model.catalog).default_prompts if model.catalog is not None else ()
    return own or DEFAULT_PROMPTS


@dataclass(frozen=True)
class StudyRequest:
    """One model, one workload, one budget. `steps` None is the model's default number.

    `prompts` and `seeds` are compared side by side, the shorter list repeated. `audit` is how many
    of the candidates that were dropped unmeasured are tried after the answer is published, within
    `audit_limit_s`; like the time limit it is no part of the question. Nor are `first`, the best
    plans of an earlier search in another environment: they are measured before all others.
    Without `step_cache` every plan computes every step.
    """

    model: ModelSpec
    workload: Workload
    budget_bytes: int
    host_budget_bytes: int | None = None
    policy: Policy = "balanced"
    objective: Objective = "latency"
    exhaustive: bool = False
    time_limit_s: float | None = None
    steps: int | None = None
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    share: bool = False
    keep_logs: bool = False
    audit: int = 0
    audit_limit_s: float | None = None
    first: tuple[Known, ...] = ()
    step_cache: bool = True

    def identity(self, inventory: ModelInventory, environment: Environment) -> str:
        """Equal for the same question on the same machine: such a study is continued. The time
        limit is no part of it."""
        return digest(
            [
                inventory.architecture,
                inventory.weights,
                self.workload.digest,
                environment.hardware.digest,
                environment.runtime.digest,
                SPACE_VERSION,
                self.provenance(),
            ]
        )

    def provenance(self) -> dict[str, Any]:
        """What decides the study's course, as JSON."""
        return {
            "budget_bytes": self.budget_bytes,
            "host_budget_bytes": self.host_budget_bytes,
            "policy": self.policy,
            "objective": self.objective,
            "exhaustive": self.exhaustive,
            "steps": self.steps,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            **({} if self.step_cache else {"step_cache": False}),
        }


@dataclass(frozen=True)
class StudyOutcome:
    """How a study ended. `published` are record ids, best first; `best` is the first of them.
    `untried` are one-line labels of what was not measured; `notes` are for people. `hidden_s` of
    starting workers passed while other trials ran, over all runs of the study. `audit` is there
    where one was asked for. `why_nothing` says how far a study came that published nothing. `front`
    are the plans that no other beats in speed and quality, the fastest first."""

    study_id: str
    published: tuple[str, ...]
    best: TuningRecord | None
    baseline: Measurement | None
    trials: int
    untried: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    hidden_s: float = 0.0
    audit: AuditReport | None = None
    why_nothing: str | None = None
    front: tuple[Place, ...] = ()
