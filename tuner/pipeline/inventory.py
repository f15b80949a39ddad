"""Counts a model without its weights: the whole pipeline runs, its modules on the meta device.

The pipeline's own Python runs as it is, on the CPU with zeros; each module call goes to meta,
is counted there, and comes back as zeros of the right shape. So any pipeline class is counted
by its own code, with no adapter for its family.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from registry.digest import digest
from registry.errors import InvalidInput
from registry.inventory import (
    ComponentActivity,
    ComponentInventory,
    LinearLayer,
    ModelInventory,
    RepeatedBlock,
    Role,
    ShapeProfile,
)
from registry.workload import Shape, Workload
from tuner import catalog
from tuner.pipeline.checkpoint import weight_files
from tuner.pipeline.counting import META, Tally, count_call
from tuner.pipeline.fuse import fuse
from tuner.pipeline.request import call_arguments
from tuner.pipeline.skeleton import Skeleton, build_skeleton
from tuner.protocol import ModelSpec

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
    pipe = _phantom_pipeline(skeleton)
    profiles = []
    for number, shape in enumerate(workload.shapes):
        profiles.append(_profile(pipe, shape))
        done("inventory", number + 1, len(workload.shapes), shape.label)
    architecture = digest([skeleton.pipeline_class, _configs(skeleton)])
    return ModelInventory(
        pipeline_class=skeleton.pipeline_class,
        architecture=architecture,
        weights=_weights_digest(spec, skeleton, architecture),
        components=components,
        profiles=tuple(profiles),
        resolution_factor=int(pipe.image_processor.config.vae_scale_factor),
        default_steps=_default_steps(spec, pipe),
        default_text_tokens=_default_text_tokens(spec, pipe),
        made_with={name: version(name) for name in ("torch", "diffusers", "transformers")},
    )


def describe_component(name: str, module: nn.Module) -> ComponentInventory:
    """One module, counted. Parameters may be on meta."""
    linears = tuple(
        LinearLayer(
            name=path,
            in_features=layer.in_features,
            out_features=layer.out_features,
            bias=layer.bias is not None,
        )
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    )
    elements = sum(parameter.numel() for parameter in module.parameters())
    blocks = _repeated_blocks(module)
    leaves = [_own_elements(layer) for layer in module.modules()]
    return ComponentInventory(
        name=name,
        class_name=type(module).__name__,
        role=component_role(name, module),
        elements=elements,
        other_elements=elements - sum(item.weight_elements for item in linears),
        buffer_bytes=sum(item.numel() * item.element_size() for item in module.buffers()),
        linears=linears,
        repeated_blocks=blocks,
        largest_leaf_elements=max(leaves, default=0),
        largest_block_elements=max((item.weight_elements for item in blocks), default=elements),
        supports_attention_backend=any(
            hasattr(getattr(layer, "processor", None), "_attention_backend")
            for layer in module.modules()
        ),
        supports_qkv_fusion=_can_fuse(module),
        has_convolutions=any(isinstance(layer, nn.Conv2d) for layer in module.modules()),
        supports_tiling=hasattr(module, "enable_tiling"),
        supports_slicing=hasattr(module, "enable_slicing"),
    )


def component_role(name: str, module: nn.Module) -> Role:
    if hasattr(module, "decode"):
        return "vae"
    if name.startswith("text_encoder"):
        return "text_encoder"
    return "denoiser" if name in ("transformer", "unet") else "other"


def _own_elements(layer: nn.Module) -> int:
    return sum(item.numel() for item in layer._parameters.values() if item is not None)


def _repeated_blocks(module: nn.Module) -> tuple[RepeatedBlock, ...]:
    wanted = getattr(module, "_repeated_blocks", None) or ()
    found: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, layer in module.named_modules():
        if type(layer).__name__ in wanted:
            found.setdefault(type(layer).__name__, []).append((path, layer))
    return tuple(
        RepeatedBlock(
            class_name=class_name,
            names=tuple(path for path, _ in items),
            weight_elements=max(sum(p.numel() for p in item.parameters()) for _, item in items),
        )
        for class_name, items in found.items()
    )


def _can_fuse(module: nn.Module) -> bool:
    """Whether diffusers' fusion reaches any layer of this class, tried on an empty copy."""
    if not hasattr(module, "fuse_qkv_projections") or hasattr(module, "decode"):
        return False
    with torch.device(META):
        trial: nn.Module = type(module).from_config(module.config)  # type: ignore[attr-defined]
    fuse(trial)
    return any(getattr(layer, "fused_projections", False) for layer in trial.modules())


def _phantom_pipeline(skeleton: Skeleton) -> Any:
    pipe = skeleton.pipeline()
    pipe.set_progress_bar_config(disable=True)
    on_cpu = property(lambda _: torch.device("cpu"))
    phantom = type(pipe).__name__
    pipe.__class__ = type(phantom, (type(pipe),), {"_execution_device": on_cpu, "device": on_cpu})
    for module in skeleton.modules.values():
        module.to(META)
    return pipe


class _Recorder:
    """Stands in for one module's call: counts the first, answers all with zeros on the CPU."""

    def __init__(self, name: str, module: nn.Module, method: str) -> None:
        self.name, self.module, self.method = name, module, method
        self.original = getattr(module, method)
        self.calls = 0
        self.tally: Tally | None = None
        self.arguments: tuple[Any, Any] = ((), {})
        self._output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.tally is None:
            self.arguments = tree_map(_to_meta, (args, kwargs))
            output, self.tally = count_call(self.module, self.original, *self.arguments)
            self._output = tree_map(_to_zeros, output)
        return self._output

    def activity(self, calls: int) -> ComponentActivity:
        return to_activity(self.name, calls, self.tally or Tally())


def to_activity(name: str, calls: int, tally: Tally) -> ComponentActivity:
    return ComponentActivity(
        component=name,
        calls=calls,
        linear_flops=tally.linear_flops,
        convolution_flops=tally.convolution_flops,
        attention_flops=tally.attention_flops,
        elementwise_bytes=tally.elementwise_bytes,
        activation_peak_bytes=tally.activation_peak_bytes,
        linear_rows=tally.linear_rows,
    )


def _to_meta(item: Any) -> Any:
    return item.to(META) if isinstance(item, torch.Tensor) else item


def _to_zeros(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return torch.zeros(item.shape, dtype=item.dtype)
    return item


def _profile(pipe: Any, shape: Shape) -> ShapeProfile:
    steps = 2
    recorders: list[_Recorder] = []
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            method = "decode" if component_role(name, module) == "vae" else "forward"
            recorder = _Recorder(name, module, method)
            setattr(module, method, recorder)
            recorders.append(recorder)
    try:
        pipe(**call_arguments(pipe, shape, ["x"] * shape.batch_size, steps), output_type="pt")
        used = [recorder for recorder in recorders if recorder.calls]
        return ShapeProfile(
            shape=shape,
            activities=tuple(_activity(recorder, steps) for recorder in used),
            tiled_vae=_tiled(used),
        )
    finally:
        for recorder in recorders:
            delattr(recorder.module, recorder.method)


def _activity(recorder: _Recorder, steps: int) -> ComponentActivity:
    denoises = component_role(recorder.name, recorder.module) == "denoiser"
    return recorder.activity(max(1, recorder.calls // steps) if denoises else recorder.calls)


def _tiled(recorders: list[_Recorder]) -> ComponentActivity | None:
    for recorder in recorders:
        module = recorder.module
        if recorder.method == "decode" and hasattr(module, "enable_tiling"):
            module.enable_tiling()  # type: ignore[operator]
            args, kwargs = recorder.arguments
            _, tally = count_call(module, recorder.original, args, kwargs)
            module.disable_tiling()  # type: ignore[operator]
            return to_activity(recorder.name, recorder.calls, tally)
    return None


def _configs(skeleton: Skeleton) -> dict[str, Any]:
    """Resolved configs, defaults included: a catalog model and its folder on disk are one."""
    configs = {name: _config(module) for name, module in skeleton.modules.items()}
    scheduler = skeleton.others.get("scheduler")
    return configs | ({"scheduler": _config(scheduler)} if scheduler is not None else {})


def _config(item: Any) -> dict[str, Any]:
    config = item.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and key not in UNSTABLE_CONFIG_KEYS
    }
    return {"class": type(item).__name__, **tree_map(_jsonable, kept)}


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _weights_digest(spec: ModelSpec, skeleton: Skeleton, architecture: str) -> str:
    folder = skeleton.folder
    if folder is None:
        return digest(["random", architecture, spec.seed])
    files = [path for name in sorted(skeleton.modules) for path in weight_files(folder / name)]
    return digest([[f"{path.parent.name}/{path.name}", _file_digest(path)] for path in files])


def _file_digest(path: Path) -> str:
    """SHA-256 of the content; the hub's cache already names its blobs by it."""
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _default_steps(spec: ModelSpec, pipe: Any) -> int:
    if spec.catalog is not None:
        return catalog.entry(spec.catalog).default_steps
    return int(inspect.signature(pipe.__call__).parameters["num_inference_steps"].default)


def _default_text_tokens(spec: ModelSpec, pipe: Any) -> int | None:
    if spec.catalog is not None:
        return catalog.entry(spec.catalog).default_text_tokens
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    return None if parameter is None else int(parameter.default)
