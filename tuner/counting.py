"""Counting a model in a worker process, for commands that measure nothing with it."""

from __future__ import annotations

import shutil

from registry.errors import TrialFailed
from registry.inventory import ModelInventory
from registry.workload import Workload
from tuner.model_spec import ModelSpec
from tuner.protocol import InventoryJob, InventoryResult
from tuner.runner import Limits, Runner

COUNT_LIMIT_S = 1800.0
"""Counting takes seconds; the rest is for a download from the hub."""


def count_model(runner: Runner, model: ModelSpec, workload: Workload) -> ModelInventory:
    """The inventory at the workload's shapes. Raises TrialFailed with the worker's own words."""
    limits = Limits(wall_s=COUNT_LIMIT_S, progress_s=COUNT_LIMIT_S)
    outcome = runner.run(InventoryJob(model=model, workload=workload), limits)
    if isinstance(outcome.result, InventoryResult):
        shutil.rmtree(outcome.log_path.parent, ignore_errors=True)
        return outcome.result.inventory
    reason = outcome.failure.message if outcome.failure else "the worker sent no result"
    raise TrialFailed(f"the model could not be counted: {reason}", hint=f"Log: {outcome.log_path}")
