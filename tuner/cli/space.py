"""`tuner space`: every candidate with its estimate, or why it was dropped."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.opening import settings_for
from tuner.cli.options import gpu_option, json_option, question_options, registry_option
from tuner.cli.output import plain, print_json, print_rich
from tuner.cli.workloads import workload_for
from tuner.units import format_bytes

if TYPE_CHECKING:
    from registry.inventory import ModelInventory
    from registry.workload import Weights, Workload
    from tuner.config import Settings
    from tuner.detect import Detection
    from tuner.model_spec import ModelSpec
    from tuner.shapes import Size
    from tuner.space import Candidate, Dropped, Survey


@click.command("space")
@question_options()
@click.option("--all", "every", is_flag=True, help="A line for every plan instead of groups.")
@gpu_option()
@json_option()
@registry_option()
def command(**given: Any) -> None:
    """Show every plan that could be tried, what is predicted for it, and why others were dropped.

    Nothing is measured. A model that was never counted is counted first, by a worker.
    """
    show(SpaceOptions(**given))


@dataclass(frozen=True)
class SpaceOptions:
    """The options of `tuner space` by their parameter names."""

    model: str
    budget_bytes: int
    host_budget_bytes: int | None
    resolutions: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    weights: Weights
    revision: str | None
    every: bool
    gpu: str | None
    as_json: bool
    registry_url: str | None


def show(options: SpaceOptions) -> None:
    """Survey the space and print it."""
    from tuner.cost_model import CostModel
    from tuner.detect import detect
    from tuner.models import resolve_model
    from tuner.space import survey

    spec = resolve_model(options.model, weights=options.weights, revision=options.revision)
    workload = workload_for(spec, options.resolutions, options.batch_sizes)
    settings = settings_for(options.registry_url)
    detection = detect(options.gpu, settings=settings)
    hardware, runtime = detection.environment.hardware, detection.environment.runtime
    inventory = _inventory(settings, spec, workload, detection)
    found = survey(
        inventory,
        detection.environment,
        workload,
        options.budget_bytes,
        options.host_budget_bytes,
        CostModel(inventory, hardware, cpu_isa=runtime.cpu_isa),
    )
    if options.as_json:
        print_json(_data(found, inventory))
    else:
        _print(found, inventory, every=options.every)


def _inventory(
    settings: Settings, spec: ModelSpec, workload: Workload, detection: Detection
) -> ModelInventory:
    """What is known already, at these shapes or scaled to them; else counted now."""
    from registry.client import open_registry
    from registry.errors import RegistryMissing
    from tuner.inventories import known_inventory
    from tuner.shapes import require_factor

    try:
        registry = open_registry(settings.registry, create=False, opening=settings.opening)
    except RegistryMissing:
        registry = None
    known = known_inventory(registry, spec)
    if known is None:
        return _count(settings, spec, workload, detection)
    require_factor(workload.shapes, known.resolution_factor, spec.ref.name)
    return known


def _count(
    settings: Settings, spec: ModelSpec, workload: Workload, detection: Detection
) -> ModelInventory:
    from registry.client import open_registry
    from tuner.counting import count_model
    from tuner.inventories import counted_inventory
    from tuner.runner import Runner

    runner = Runner(sys.executable, detection, None, settings.scratch_dir)
    click.echo(f"counting {spec.ref.name}, once", err=True)
    return counted_inventory(
        open_registry(settings.registry, opening=settings.opening),
        spec,
        workload,
        detection.environment.runtime,
        take=lambda: count_model(runner, spec, workload),
        now=datetime.now(UTC),
    )


def _data(found: Survey, inventory: ModelInventory) -> dict[str, Any]:
    from tuner.labels import describe

    def candidate(item: Candidate | Dropped) -> dict[str, Any]:
        return {"label": describe(item.plan, inventory), **plain(item)}

    return {
        "smallest_budget_bytes": found.smallest_budget_bytes,
        "step_caches": [plain(cache) for ladder in found.step_caches for cache in ladder],
        "candidates": [candidate(item) for item in found.kept],
        "dropped": [candidate(item) for item in found.dropped],
    }


def _print(found: Survey, inventory: ModelInventory, *, every: bool) -> None:
    from tuner.report import candidates

    if every:
        print_rich(
            candidates.every_kept_table(found, inventory),
            candidates.every_dropped_table(found.dropped, inventory),
        )
    else:
        print_rich(
            candidates.kept_table(found, inventory),
            candidates.dropped_table(found.dropped, inventory),
        )
    for line in candidates.step_cache_lines(found):
        click.echo(line)
    if found.smallest_budget_bytes is not None:
        smallest = format_bytes(found.smallest_budget_bytes)
        click.echo(f"The smallest budget that is predicted to hold any plan: {smallest}.")
