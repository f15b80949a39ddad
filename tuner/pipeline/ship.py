"""Writes the inventories that the wheel ships: `python -m tuner.pipeline.ship FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from registry.workload import Shape, Workload
from tuner import catalog
from tuner.models import resolve_model
from tuner.pipeline.inventory import take_inventory


def main(folder: Path) -> None:
    """One file for each catalog model, at its default resolution, of shipped or random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in catalog.names():
        entry = catalog.entry(name)
        width, height = entry.default_resolution
        workload = Workload(shapes=(Shape(height=height, width=width),))
        spec = resolve_model(name, weights="pretrained" if entry.ships_weights else "random")
        inventory = take_inventory(spec, workload, lambda *_: None)
        (folder / f"{name}.json").write_text(inventory.model_dump_json() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
