"""From what a user calls a model to what a worker can build: catalog name, hub id or folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from registry.errors import InvalidInput, UnknownModel
from registry.workload import ModelRef, Weights
from tuner import catalog
from tuner.model_spec import ModelSpec

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def resolve_model(
    name: str,
    *,
    weights: Weights = "pretrained",
    revision: str | None = None,
    seed: int = 0,
    folders: bool = True,
) -> ModelSpec:
    """The ModelSpec of a catalog name, a local diffusers folder or a hub id, in that order. Without
    `folders` nothing is looked for on disk: whoever asks is on another machine.

    Raises UnknownModel for anything else and InvalidInput for random weights of a hub model,
    whose configs are not known here. Nothing is downloaded.
    """
    if not name.strip():
        raise UnknownModel("no model is named", hint="`tuner models` lists the catalog.")
    if name in catalog.names():
        return _from_catalog(name, weights, revision, seed)
    path = Path(name).expanduser() if folders else None
    if path is not None and path.is_dir():
        return _from_folder(path, weights, revision, seed)
    if HUB_ID.fullmatch(name):
        ref = ModelRef(name=name, source="hub", revision=revision, weights=weights)
        _refuse_random(name, weights)
        return ModelSpec(ref=ref, hub_id=name, seed=seed)
    raise UnknownModel(
        f"unknown model {name!r}: not in the catalog ({', '.join(catalog.names())}), "
        "not a folder here, and not a hub id (owner/name)",
        hint="`tuner models` lists the catalog; pass a local diffusers folder by its path.",
    )


def _from_catalog(name: str, weights: Weights, revision: str | None, seed: int) -> ModelSpec:
    entry = catalog.entry(name)
    if entry.ships_weights and revision is not None:
        raise InvalidInput(f"--revision {revision!r} has no meaning for {name}, which is shipped")
    effective: Weights = "random" if entry.random_only else weights
    ref = ModelRef(name=name, source="catalog", revision=revision, weights=effective)
    hub_id = entry.hub_id if effective == "pretrained" else None
    return ModelSpec(ref=ref, catalog=name, hub_id=hub_id, seed=seed)


def _from_folder(path: Path, weights: Weights, revision: str | None, seed: int) -> ModelSpec:
    read_model_index(path)
    if revision is not None:
        raise InvalidInput(f"--revision {revision!r} has no meaning for the local folder {path}")
    ref = ModelRef(name=path.resolve().name, source="local", weights=weights)
    return ModelSpec(ref=ref, path=str(path.resolve()), seed=seed)


def read_model_index(path: Path) -> dict[str, object]:
    """The parsed `model_index.json` of a diffusers folder. Raises UnknownModel."""
    index = path / "model_index.json"
    hint = "Save a pipeline with `pipe.save_pretrained(folder)` and pass that folder."
    if not index.is_file():
        raise UnknownModel(f"{path} has no model_index.json: not a diffusers folder", hint=hint)
    try:
        parsed = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnknownModel(f"{index} is not JSON: {error}", hint=hint) from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("_class_name"), str):
        raise UnknownModel(f"{index} names no pipeline class (_class_name)", hint=hint)
    return parsed


def _refuse_random(name: str, weights: Weights) -> None:
    if weights == "random":
        raise InvalidInput(
            f"random weights need the configs of {name!r}, which only the hub has",
            hint="Use a catalog name or a local folder with --weights random.",
        )
