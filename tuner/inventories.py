"""A model's inventory: what is known without running anything, and what must be counted.

One entry a model in the registry; a study at new shapes adds their profiles to it. So an answer for
any size finds it, on a machine without torch too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from registry.digest import digest
from registry.errors import InvalidInput
from tuner import catalog
from tuner.shapes import require_factor

if TYPE_CHECKING:
    from datetime import datetime

    from registry.environment import Runtime
    from registry.inventory import ModelInventory
    from registry.store import Registry
    from registry.workload import ModelRef, Workload
    from tuner.hub_cache import CachedWeights
    from tuner.model_spec import ModelSpec

COUNTED_WITH = ("torch", "diffusers", "transformers")
"""Libraries whose versions an inventory must share with the worker that relies on it."""


def inventory_key(model: ModelSpec) -> str:
    """What an inventory is kept under. A local folder is known by its files' names, sizes and
    times, never by its path; shipped weights by their content, which an installation does not
    change."""
    ref = model.ref
    revision = f"@{ref.revision}" if ref.revision else ""
    seed = f":{model.seed}" if ref.weights == "random" else ""
    content = _content(model)
    suffix = f"#{content}" if content else ""
    return f"{ref.source}:{ref.name}{revision}:{ref.weights}{seed}{suffix}"


def _content(model: ModelSpec) -> str | None:
    if model.path:
        return _fingerprint(Path(model.path))
    if model.catalog is None or not catalog.entry(model.catalog).ships_weights:
        return None
    shipped = catalog.shipped_inventory(model.catalog)
    return None if shipped is None else shipped.weights


def known_inventory(registry: Registry | None, model: ModelSpec) -> ModelInventory | None:
    """Whatever is known: the registry's, of any library versions and shapes, else the one that
    this release ships with its catalog."""
    kept = registry.inventory(inventory_key(model)) if registry is not None else None
    if kept is not None or model.catalog is None:
        return kept
    return catalog.shipped_inventory(model.catalog)


def known_weights(registry: Registry | None, model: ModelSpec) -> str | None:
    """Digest of the model's weights, where it was counted from these very weights: a shipped
    inventory is of shipped weights, else of random ones."""
    kept = registry.inventory(inventory_key(model)) if registry is not None else None
    if kept is not None:
        return kept.weights
    if model.catalog is None or not _is_shipped_one(model, model.catalog):
        return None
    shipped = catalog.shipped_inventory(model.catalog)
    return None if shipped is None else shipped.weights


def _is_shipped_one(model: ModelSpec, name: str) -> bool:
    if catalog.entry(name).ships_weights:
        return model.ref.weights == "pretrained"
    return (model.ref.weights, model.seed) == ("random", 0)


def inventories_of(registry: Registry, models: Iterable[ModelRef]) -> dict[str, ModelInventory]:
    """Of models that have the same name on another machine, by their keys: not of local folders,
    nor of models that this release does not know, of which records may come from elsewhere."""
    found = {}
    for ref in set(models):
        spec = None if ref.source == "local" else _known_model(ref)
        if spec is None:
            continue
        kept = registry.inventory(inventory_key(spec))
        if kept is not None:
            found[inventory_key(spec)] = kept
    return found


def _known_model(ref: ModelRef) -> ModelSpec | None:
    from tuner.models import resolve_model

    try:
        return resolve_model(ref.name, weights=ref.weights, revision=ref.revision, folders=False)
    except InvalidInput:
        return None


def counted_inventory(
    registry: Registry,
    model: ModelSpec,
    workload: Workload,
    runtime: Runtime,
    *,
    take: Callable[[], ModelInventory],
    now: datetime,
    cached: CachedWeights | None = None,
) -> ModelInventory:
    """An inventory counted with `runtime`'s libraries at every shape of the workload, and of the
    weights that the hub's cache holds now, where it is known which.

    `take` counts one at exactly these shapes, in a worker; it is called only where the registry's
    does not do. Raises InvalidInput for a shape the model cannot make.
    """
    kept = registry.inventory(inventory_key(model))
    moved = kept is not None and cached is not None and cached.digest != kept.weights
    if kept is not None and not moved and _is_current(kept, runtime) and _covers(kept, workload):
        return kept
    known = known_inventory(registry, model)
    if known is not None:
        require_factor(workload.shapes, known.resolution_factor, model.ref.name)
    made = take()
    require_factor(workload.shapes, made.resolution_factor, model.ref.name)
    merged = _with_profiles_of(made, kept)
    registry.put_inventory(inventory_key(model), merged, now)
    return merged


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


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
