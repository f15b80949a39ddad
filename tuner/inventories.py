"""Where a model's inventory is kept, and what is known of a model without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from registry.digest import digest
from tuner import catalog

if TYPE_CHECKING:
    from registry.inventory import ModelInventory
    from registry.store import Registry
    from tuner.protocol import ModelSpec


def inventory_key(model: ModelSpec) -> str:
    """What an inventory is kept under. A local folder is known by its files' names, sizes and
    times, never by its path."""
    ref = model.ref
    revision = f"@{ref.revision}" if ref.revision else ""
    seed = f":{model.seed}" if ref.weights == "random" else ""
    folder = f"#{_fingerprint(Path(model.path))}" if model.path else ""
    return f"{ref.source}:{ref.name}{revision}:{ref.weights}{seed}{folder}"


def known_inventory(registry: Registry | None, model: ModelSpec) -> ModelInventory | None:
    """What is known without running anything: the registry's, else the one shipped."""
    kept = registry.inventory(inventory_key(model)) if registry is not None else None
    if kept is not None or model.catalog is None:
        return kept
    return catalog.shipped_inventory(model.catalog)


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
