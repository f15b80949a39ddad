"""A pipeline's modules with parameters on the meta device and real buffers: no memory, no weights.

Parameters move to meta as they are created; non-persistent buffers (RoPE tables, position ids)
are computed by the constructors and stay real, since nothing could recompute them later.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from registry.errors import InvalidInput, UnknownModel
from tuner import catalog
from tuner.catalog import CatalogModel, ComponentSpec
from tuner.models import read_model_index
from tuner.pipeline.tokenizer import byte_tokenizer
from tuner.protocol import ModelSpec

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a model may name: a folder's own code is never imported."""


@dataclass(frozen=True)
class Skeleton:
    """`modules` are on meta; `others` (scheduler, tokenizers) are complete; `configs` is what the
    architecture digest is made of. `folder` holds the weights, None for random ones."""

    pipeline_class: str
    modules: Mapping[str, nn.Module]
    others: Mapping[str, Any]
    configs: Mapping[str, Any]
    folder: Path | None

    def pipeline(self) -> Any:
        """The diffusers pipeline around these modules."""
        factory = library_class(f"diffusers.{self.pipeline_class}")
        return factory(**self.modules, **self.others)


def library_class(dotted: str) -> Any:
    """The class named "diffusers.X" or "transformers.X". Raises InvalidInput for anything else."""
    library, _, name = dotted.partition(".")
    if library not in LIBRARIES:
        raise InvalidInput(
            f"{dotted!r} is not a class of {' or '.join(LIBRARIES)}: custom code is not run"
        )
    found = getattr(importlib.import_module(library), name, None)
    if found is None:
        raise InvalidInput(f"the installed {library} has no class {name!r}")
    return found


def build_skeleton(spec: ModelSpec, dtype: torch.dtype) -> Skeleton:
    """Raises UnknownModel where neither folder, hub nor catalog gives the model."""
    if spec.path is None and spec.ref.weights == "random":
        return _from_catalog(catalog.entry(str(spec.catalog)), dtype)
    folder = Path(spec.path) if spec.path else download(spec)
    return _from_folder(folder, dtype, keep_folder=spec.ref.weights == "pretrained")


@contextmanager
def _on_meta(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(before)


def _from_catalog(entry: CatalogModel, dtype: torch.dtype) -> Skeleton:
    modules: dict[str, nn.Module] = {}
    others: dict[str, Any] = {}
    for name, component in entry.components.items():
        built = _from_config(component, dtype)
        (modules if isinstance(built, nn.Module) else others)[name] = built
    _fill_optional(entry.pipeline_class, modules, others)
    configs = {name: item.model_dump(mode="json") for name, item in entry.components.items()}
    return Skeleton(entry.pipeline_class, modules, others, configs, None)


def _from_config(component: ComponentSpec, dtype: torch.dtype) -> Any:
    if component.tokenizer is not None:
        return byte_tokenizer(component.tokenizer)
    class_name = str(component.class_name)
    factory = library_class(class_name)
    config = dict(component.config)
    if class_name.startswith("transformers."):
        return _text_model(factory, factory.config_class(**config), dtype)
    if not issubclass(factory, nn.Module):
        return factory.from_config(config)
    with _on_meta(dtype):
        return factory.from_config(config).eval()


def _text_model(factory: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    with _on_meta(dtype):
        model: nn.Module = factory(config)
    model.tie_weights()  # type: ignore[operator]  # each move to meta made a parameter of its own
    return model.eval()


def _fill_optional(
    pipeline_class: str, modules: dict[str, nn.Module], others: dict[str, Any]
) -> None:
    """Constructors name their optional components too (FLUX's image encoder): None for those."""
    factory = library_class(f"diffusers.{pipeline_class}")
    for name in factory._optional_components:
        if name not in modules and name not in others:
            others[name] = None


def download(spec: ModelSpec) -> Path:
    """The hub snapshot's folder; safetensors, configs and tokenizers only.

    Raises UnknownModel, saying how to pass a local folder, where the hub gives nothing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from requests import RequestException

    patterns = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    try:
        found = snapshot_download(
            str(spec.hub_id), revision=spec.ref.revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnknownModel(
            f"cannot get {spec.hub_id!r} from the hub: {reason}",
            hint="Download it where there is a network and pass the folder: --model /path/to/folder"
            " (or tune speed and memory alone with --weights random).",
        ) from None
    return Path(found)


def _from_folder(folder: Path, dtype: torch.dtype, *, keep_folder: bool) -> Skeleton:
    index = read_model_index(folder)
    modules: dict[str, nn.Module] = {}
    others: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not isinstance(value, list) or len(value) != 2:
            others[name] = value
            configs[name] = value
            continue
        built, config = _folder_component(folder / name, value, dtype)
        (modules if isinstance(built, nn.Module) else others)[name] = built
        configs[name] = config
    _fill_optional(str(index["_class_name"]), modules, others)
    kept = folder if keep_folder else None
    return Skeleton(str(index["_class_name"]), modules, others, configs, kept)


def _folder_component(
    folder: Path, value: list[str | None], dtype: torch.dtype
) -> tuple[Any, dict[str, Any] | None]:
    library, class_name = value
    if library is None or class_name is None:
        return None, None
    factory = library_class(f"{library}.{class_name}")
    config = {"class": f"{library}.{class_name}", **_stable_config(folder)}
    if not issubclass(factory, nn.Module):
        return factory.from_pretrained(str(folder)), config
    if library == "transformers":
        return _text_model(
            factory, factory.config_class.from_pretrained(str(folder)), dtype
        ), config
    with _on_meta(dtype):
        return factory.from_config(factory.load_config(str(folder))).eval(), config


def _stable_config(folder: Path) -> dict[str, Any]:
    """The config without what changes with the library that wrote it."""
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).is_file():
            parsed = json.loads((folder / name).read_text(encoding="utf-8"))
            dropped = ("_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype")
            return {key: item for key, item in parsed.items() if key not in dropped}
    return {}
