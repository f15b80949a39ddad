"""A pipeline's modules with parameters on the meta device and real buffers: no memory, no weights.

Parameters move to meta as they are created; non-persistent buffers (RoPE tables, position ids)
are computed by the constructors and stay real, since nothing could recompute them later.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from registry.errors import InvalidInput
from registry.plan import COMPONENT_NAME
from tuner import catalog
from tuner.catalog import CatalogModel, ComponentSpec
from tuner.model_spec import ModelSpec
from tuner.models import read_model_index
from tuner.pipeline.classes import component_class, pipeline_class
from tuner.pipeline.dtypes import keep_float32
from tuner.pipeline.hub import download
from tuner.pipeline.tokenizer import byte_tokenizer


@dataclass(frozen=True)
class Skeleton:
    """`modules` are on meta; `others` (scheduler, tokenizers) are complete. `folder` holds the
    weights, None for random ones."""

    pipeline_class: str
    modules: Mapping[str, nn.Module]
    others: Mapping[str, Any]
    folder: Path | None

    def pipeline(self) -> Any:
        """The diffusers pipeline around these modules."""
        return pipeline_class(self.pipeline_class)(**self.modules, **self.others)


def build_skeleton(spec: ModelSpec, dtype: torch.dtype) -> Skeleton:
    """Raises UnknownModel where neither folder, hub nor catalog gives the model, InvalidInput for
    one that cannot be built."""
    pretrained = spec.ref.weights == "pretrained"
    folder = _local_folder(spec)
    if folder is None and not pretrained:
        return _from_catalog(catalog.entry(str(spec.catalog)), dtype)
    return _from_folder(folder or download(spec), dtype, keep_folder=pretrained)


def _local_folder(spec: ModelSpec) -> Path | None:
    if spec.path is not None:
        return Path(spec.path)
    return None if spec.catalog is None else catalog.weights_folder(spec.catalog)


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
    built = {name: _from_config(item, dtype) for name, item in entry.components.items()}
    return _sorted_out(entry.pipeline_class, built, None)


def _from_config(component: ComponentSpec, dtype: torch.dtype) -> Any:
    if component.tokenizer is not None:
        return byte_tokenizer(component.tokenizer)
    class_name = str(component.class_name)
    factory = component_class(class_name)
    config = dict(component.config)
    if class_name.startswith("transformers."):
        return _text_model(factory, factory.config_class(**config), dtype)
    if not issubclass(factory, nn.Module):
        return factory.from_config(config)
    return _model(factory, config, dtype)


def _model(factory: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    with _on_meta(dtype):
        model: nn.Module = factory.from_config(config)
    keep_float32(model, dtype)
    return model.eval()


def _text_model(factory: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype  # else the one it was saved in, which a checkpoint's config names
    with _on_meta(dtype):
        model: nn.Module = factory(config)
    model.tie_weights()  # type: ignore[operator]  # each move to meta made a parameter of its own
    keep_float32(model, dtype)
    return model.eval()


def _from_folder(folder: Path, dtype: torch.dtype, *, keep_folder: bool) -> Skeleton:
    index: dict[str, Any] = read_model_index(folder)
    built: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not COMPONENT_NAME.fullmatch(name):
            raise InvalidInput(f"{folder}/model_index.json: {name!r} is not a component's name")
        built[name] = value
        if isinstance(value, list) and len(value) == 2:
            built[name] = _folder_component(folder / name, value[0], value[1], dtype)
    return _sorted_out(str(index["_class_name"]), built, folder if keep_folder else None)


def _folder_component(
    folder: Path, library: str | None, class_name: str | None, dtype: torch.dtype
) -> Any:
    if library is None or class_name is None:
        return None
    factory = component_class(f"{library}.{class_name}")
    needed = "config.json" if issubclass(factory, nn.Module) else "*.json"
    if not any(folder.glob(needed)):
        # transformers would make its default model of nothing.
        raise InvalidInput(f"{folder}: no {class_name} can be made of it: no {needed} there")
    try:
        if not issubclass(factory, nn.Module):
            return factory.from_pretrained(str(folder), local_files_only=True)
        if library == "transformers":
            return _text_model(factory, factory.config_class.from_pretrained(str(folder)), dtype)
        return _model(factory, factory.load_config(str(folder)), dtype)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{folder}: no {class_name} can be made of it: {reason}") from error


def _sorted_out(class_name: str, built: Mapping[str, Any], folder: Path | None) -> Skeleton:
    """Modules apart from the rest; what the constructor takes and nobody named is None.

    Raises InvalidInput for a component that the pipeline needs and does not have."""
    factory = pipeline_class(class_name)
    accepted = inspect.signature(factory.__init__).parameters
    modules = {name: item for name, item in built.items() if isinstance(item, nn.Module)}
    unknown = sorted(set(modules) - set(accepted))
    if unknown:
        raise InvalidInput(f"{class_name} has no component {', '.join(unknown)}")
    others = {
        name: item for name, item in built.items() if name in accepted and name not in modules
    }
    optional = factory._optional_components
    others |= {name: None for name in optional if name not in built and name in accepted}
    absent = sorted(
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty
        and name not in ("self", *optional, *modules)
        and others.get(name) is None
    )
    if absent:
        raise InvalidInput(f"{class_name} needs {', '.join(absent)}, which the model does not have")
    return Skeleton(class_name, modules, others, folder)
