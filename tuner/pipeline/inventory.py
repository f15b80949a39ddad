"""Counts a model without its weights, and names it: the digests of its architecture and weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from registry.digest import digest
from registry.errors import InvalidInput
from registry.inventory import ModelInventory
from registry.workload import Workload
from tuner import catalog
from tuner.model_spec import ModelSpec
from tuner.pipeline.components import describe_component
from tuner.pipeline.profiles import phantom_pipeline, profile
from tuner.pipeline.skeleton import Skeleton, build_skeleton
from tuner.pipeline.text_length import padded_text_tokens, plain_text_tokens
from tuner.weight_files import weights_digest

UNSTABLE_CONFIG_KEYS = frozenset(
    {"transformers_version", "dtype", "torch_dtype", "architectures", "name_or_path"}
)
"""Config keys that change with the library or the saver and not with the model."""

Done = Callable[[str, int, int, str], None]


def take_inventory(spec: ModelSpec, workload: Workload, done: Done) -> ModelInventory:
    """The model's components, and their activity at each of the workload's shapes."""
    skeleton = build_skeleton(spec, torch.bfloat16)
    components = tuple(
        describe_component(name, module) for name, module in skeleton.modules.items()
    )
    if not any(item.role == "denoiser" for item in components):
        raise InvalidInput(f"{spec.ref.name!r} has no transformer or unet to tune")
    pipe = phantom_pipeline(skeleton)
    profiles = []
    for number, shape in enumerate(workload.shapes):
        profiles.append(profile(pipe, shape))
        done("inventory", number + 1, len(workload.shapes), shape.label)
    architecture = digest([skeleton.pipeline_class, _configs(skeleton)])
    return ModelInventory(
        pipeline_class=skeleton.pipeline_class,
        architecture=architecture,
        weights=_weights_digest(spec, skeleton, architecture),
        components=components,
        profiles=tuple(profiles),
        resolution_factor=_resolution_factor(pipe),
        default_steps=_default_steps(spec, pipe),
        default_text_tokens=_default_text_tokens(spec, pipe),
        padded_text_tokens=padded_text_tokens(pipe),
        made_with={name: version(name) for name in ("torch", "diffusers", "transformers")},
    )


def _configs(skeleton: Skeleton) -> dict[str, Any]:
    """Resolved configs, defaults included: a catalog model and its folder on disk are one."""
    configs = {name: _config(module) for name, module in skeleton.modules.items()}
    scheduler = skeleton.others.get("scheduler")
    return configs | ({"scheduler": _config(scheduler)} if scheduler is not None else {})


def _config(item: Any) -> dict[str, Any]:
    config = item.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {"class": type(item).__name__, **_stable(values)}


def _stable(value: Any) -> Any:
    """JSON without what changes with the library or the saver, at every level."""
    if isinstance(value, dict):
        named = {str(key): item for key, item in value.items()}
        return {
            key: _stable(item)
            for key, item in named.items()
            if not key.startswith("_") and key not in UNSTABLE_CONFIG_KEYS
        }
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _weights_digest(spec: ModelSpec, skeleton: Skeleton, architecture: str) -> str:
    if skeleton.folder is None:
        return digest(["random", architecture, spec.seed])
    return weights_digest(skeleton.folder, skeleton.modules)


def _resolution_factor(pipe: Any) -> int:
    """What divides every height and width. Raises InvalidInput for a pipeline without pictures."""
    for name in ("image_processor", "video_processor"):
        processor = getattr(pipe, name, None)
        if processor is not None:
            return int(processor.config.vae_scale_factor)
    raise InvalidInput(f"{type(pipe).__name__} makes neither pictures nor videos")


def _default_steps(spec: ModelSpec, pipe: Any) -> int:
    if spec.catalog is not None:
        return catalog.entry(spec.catalog).default_steps
    return int(inspect.signature(pipe.__call__).parameters["num_inference_steps"].default)


def _default_text_tokens(spec: ModelSpec, pipe: Any) -> int | None:
    if spec.catalog is not None:
        return catalog.entry(spec.catalog).default_text_tokens
    return plain_text_tokens(pipe)
