"""An inventory of exactly what is asked: from the registry, else counted by a worker."""

from __future__ import annotations

import shutil
from datetime import datetime

from registry.environment import Runtime
from registry.errors import TrialFailed
from registry.inventory import ModelInventory
from registry.store import Registry
from registry.workload import Workload
from tuner.inventories import inventory_key, known_inventory
from tuner.protocol import InventoryJob, InventoryResult, ModelSpec
from tuner.runner import Limits, Runner
from tuner.shapes import require_factor

LIMITS = Limits(wall_s=1800.0, progress_s=900.0)
"""Counting takes seconds; the rest is for a download from the hub."""
COUNTED_WITH = ("torch", "diffusers", "transformers")


def counted_inventory(
    registry: Registry,
    model: ModelSpec,
    workload: Workload,
    runtime: Runtime,
    runner: Runner,
    *,
    now: datetime,
) -> ModelInventory:
    """An inventory that was counted with today's libraries at every shape of the workload.

    Kept in the registry, so that a worker counts once per model, library version and shape.
    Raises InvalidInput for a shape the model cannot make, TrialFailed where counting failed.
    """
    kept = registry.inventory(inventory_key(model))
    if kept is not None and _is_current(kept, runtime) and _covers(kept, workload):
        return kept
    known = known_inventory(registry, model)
    if known is not None:
        require_factor(workload.shapes, known.resolution_factor, model.ref.name)
    made = _count(model, workload, runner)
    require_factor(workload.shapes, made.resolution_factor, model.ref.name)
    merged = _with_profiles_of(made, kept)
    registry.put_inventory(inventory_key(model), merged, now)
    return merged


def _count(model: ModelSpec, workload: Workload, runner: Runner) -> ModelInventory:
    outcome = runner.run(InventoryJob(model=model, workload=workload), LIMITS)
    if isinstance(outcome.result, InventoryResult):
        shutil.rmtree(outcome.log_path.parent, ignore_errors=True)
        return outcome.result.inventory
    reason = outcome.failure.message if outcome.failure else "the worker gave no inventory"
    raise TrialFailed(
        f"{model.ref.name!r} could not be counted: {reason}",
        hint=f"The worker's log: {outcome.log_path}",
    )


def _with_profiles_of(made: ModelInventory, kept: ModelInventory | None) -> ModelInventory:
    """The profiles of other shapes stay, where the model is still the same."""
    if kept is None or (kept.architecture, kept.made_with) != (made.architecture, made.made_with):
        return made
    others = tuple(item for item in kept.profiles if made.profile(item.shape) is None)
    return made.model_copy(update={"profiles": made.profiles + others})


def _is_current(inventory: ModelInventory, runtime: Runtime) -> bool:
    return all(inventory.made_with.get(name) == getattr(runtime, name) for name in COUNTED_WITH)


def _covers(inventory: ModelInventory, workload: Workload) -> bool:
    return all(inventory.profile(shape) is not None for shape in workload.shapes)
