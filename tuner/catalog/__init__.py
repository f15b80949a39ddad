"""Models known by name: where their weights are, and the full configs that random weights need.

Each is one JSON file in `models/`; `inventories/` ships what a worker counted for it, so that
plans can be predicted before torch is even installed. `weights/` holds the diffusers folder of each
model that comes with this package.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from registry.base import Frozen, FrozenMapping
from registry.errors import UnknownModel
from registry.inventory import ModelInventory


class TokenizerSpec(Frozen):
    """Enough to build a byte-level tokenizer of the right vocabulary size for random weights."""

    vocab_size: int
    model_max_length: int
    bos_token_id: int | None = None
    eos_token_id: int
    pad_token_id: int


class ComponentSpec(Frozen):
    """A class of diffusers or transformers by its dotted name, and its config; or a tokenizer."""

    class_name: str | None = Field(
        default=None, alias="class", pattern=r"^(diffusers|transformers)\.\w+$"
    )
    config: FrozenMapping[Any] = Field(default={}, validate_default=True)
    tokenizer: TokenizerSpec | None = None


class CatalogModel(Frozen):
    """`random_only` models have no published weights; `hub_id` is None for them. The weights and
    configs of a model that `ships_weights` are in `weights_folder`, and no `components` are named
    here. `default_prompts` are those of a model that does not know the words of all others'."""

    name: str
    hub_id: str | None
    pipeline_class: str
    description: str
    default_steps: int
    default_resolution: tuple[int, int]
    default_text_tokens: int
    default_prompts: tuple[str, ...] = ()
    random_only: bool
    ships_weights: bool = False
    components: FrozenMapping[ComponentSpec] = Field(default={}, validate_default=True)


def names() -> tuple[str, ...]:
    """Catalog names in alphabetical order."""
    folder = files(__name__) / "models"
    return tuple(sorted(item.name.removesuffix(".json") for item in folder.iterdir()))


@cache
def entry(name: str) -> CatalogModel:
    """Raises UnknownModel, listing the names there are."""
    if name not in names():
        raise UnknownModel(
            f"unknown model {name!r}; the catalog has: {', '.join(names())}",
            hint="A hub id (owner/name) or a local diffusers folder is accepted too.",
        )
    text = (files(__name__) / "models" / f"{name}.json").read_text(encoding="utf-8")
    return CatalogModel.model_validate(json.loads(text))


def weights_folder(name: str) -> Path | None:
    """The diffusers folder that this package ships for the model; None for one it ships none of.

    Raises UnknownModel for an unknown name, and where the package lies in an archive, so that
    libraries could not open the folder's files.
    """
    if not entry(name).ships_weights:
        return None
    folder = Path(str(files(__name__) / "weights" / name))
    if not folder.is_dir():
        raise UnknownModel(
            f"the weights of {name!r} are not where this package should hold them: {folder}",
            hint="Install the package from its wheel, unpacked; `pip install` does so.",
        )
    return folder


@cache
def shipped_inventory(name: str) -> ModelInventory | None:
    """The inventory counted at the model's default resolution, if this release ships one: of the
    shipped weights where there are any, else of random ones with seed 0."""
    item = files(__name__) / "inventories" / f"{name}.json"
    if not item.is_file():
        return None
    return ModelInventory.model_validate_json(item.read_text(encoding="utf-8"))
