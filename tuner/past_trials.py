"""Every finished trial of a registry, as cases that predictions can be judged by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from registry.digest import short
from registry.inventory import ModelInventory
from registry.record import Rung, Trial
from registry.store import Registry
from registry.studies import StudyRow
from tuner import catalog
from tuner.inventories import inventory_key, known_inventory
from tuner.labels import DENOISER_NAMES
from tuner.model_error import Case
from tuner.model_spec import ModelSpec
from tuner.search.features import placement_label

EVERY_STUDY = 1_000_000
COMPLETE: Mapping[Rung, int] = {"pipeline": 0, "replay": 1, "denoiser": 2}
"""Which of a plan's trials in one study counts: a replay repeats what the pipeline rung showed, and
a denoiser trial shows its steps alone."""


NOT_PREDICTED = {"profile": "profiled", "verify": "verified"}
"""Studies of other commands, by the word for their trials: what a profile measures holds the
profiler, and what a verification expects was measured before."""


@dataclass(frozen=True)
class PastTrials:
    """`left_out` counts trials that say nothing of a prediction, by the reason; `inventories` are
    those known of the cases' models, by `Case.model_key`."""

    cases: tuple[Case, ...]
    left_out: Mapping[str, int]
    inventories: Mapping[str, ModelInventory]


def past_trials(
    registry: Registry, model_name: str | None = None, *, contaminated: bool = False
) -> PastTrials:
    """One case for each plan of each study that was predicted and measured. `contaminated` takes
    trials in, too, that ran beside foreign load."""
    left_out: Counter[str] = Counter()
    inventories: dict[str, ModelInventory | None] = {}
    cases: list[Case] = []
    for study in registry.studies(model_name=model_name, limit=EVERY_STUDY):
        spec = _spec(study)
        key = inventory_key(spec)
        if key not in inventories:
            inventories[key] = known_inventory(registry, spec)
        trials = registry.trials(study.id)
        command = study.request.get("command")
        if command in NOT_PREDICTED:
            left_out[NOT_PREDICTED[command]] += len(trials)
            continue
        chosen = _most_complete(trials, left_out, contaminated=contaminated)
        cases += _cases(study, key, inventories[key], chosen)
    known = {key: item for key, item in inventories.items() if item is not None}
    return PastTrials(tuple(cases), dict(+left_out), known)


def _most_complete(
    trials: tuple[Trial, ...], left_out: Counter[str], *, contaminated: bool
) -> dict[int, Trial]:
    """By their numbers in the study."""
    chosen: dict[str, tuple[int, Trial]] = {}
    for number, trial in enumerate(trials, start=1):
        reason = _why_not(trial, contaminated=contaminated)
        known = chosen.get(trial.plan.digest)
        if reason is not None:
            left_out[reason] += 1
        elif known is None or COMPLETE[trial.rung] < COMPLETE[known[1].rung]:
            left_out["repeats a plan of its study"] += known is not None
            chosen[trial.plan.digest] = (number, trial)
        else:
            left_out["repeats a plan of its study"] += 1
    return dict(chosen.values())


def _why_not(trial: Trial, *, contaminated: bool) -> str | None:
    if trial.measurement is None:
        kind = trial.failure.kind.replace("_", " ") if trial.failure else "not run"
        return f"failed ({kind})" if trial.failure else kind
    if trial.estimate is None:
        return "not predicted"
    if trial.plan.pipeline.step_cache is not None:
        return "caches steps"
    if trial.measurement.contaminated is not None and not contaminated:
        return "contaminated"
    return None if trial.rung in COMPLETE else f"{trial.rung} rung"


def _cases(
    study: StudyRow, key: str, inventory: ModelInventory | None, chosen: Mapping[int, Trial]
) -> Iterator[Case]:
    for number, trial in sorted(chosen.items()):
        if trial.estimate is None or trial.measurement is None:
            continue
        yield Case(
            trial=f"{short(study.id)}/{number}",
            family=_family(study, inventory),
            model=study.model.name,
            model_key=key,
            environment=study.environment,
            workload=study.workload,
            plan=trial.plan,
            placement=_placement(trial, inventory),
            estimate=trial.estimate,
            measurement=trial.measurement,
            default_steps=study.request.get("steps") is None,
        )


def _spec(study: StudyRow) -> ModelSpec:
    """A study knows no path, so the inventory of a local folder is not found again."""
    is_known = study.model.source == "catalog" and study.model.name in catalog.names()
    return ModelSpec(ref=study.model, catalog=study.model.name if is_known else None)


def _family(study: StudyRow, inventory: ModelInventory | None) -> str:
    """The pipeline's class without its ending ("flux"), or the model's own name."""
    if inventory is None:
        return study.model.name
    return inventory.pipeline_class.removesuffix("Pipeline").lower()


def _placement(trial: Trial, inventory: ModelInventory | None) -> str:
    """Where the denoiser is."""
    named = [name for name in DENOISER_NAMES if name in trial.plan.pipeline.components]
    name = inventory.denoiser.name if inventory else (named or [DENOISER_NAMES[0]])[0]
    return placement_label(trial.plan.pipeline.component(name).placement)
