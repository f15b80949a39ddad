"""Layer by layer onto the device: materialise, quantize, and back to the host where it belongs.

The peak of a load is therefore the plan's own weights plus one layer, not the bf16 model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from registry.plan import ComponentPlan, Plan
from tuner.pipeline.fuse import fuse
from tuner.pipeline.quantize import is_quantizable, quantize_layer
from tuner.pipeline.skeleton import Skeleton, build_skeleton
from tuner.pipeline.weights import FusedWeights, WeightSource, component_source
from tuner.protocol import ModelSpec

LayerDone = Callable[[str, int, int], None]
"""Called with (component, layers done, layers in all)."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_skeleton(spec: ModelSpec, plan: Plan) -> Skeleton:
    """The model on meta in the plan's dtype, QKV fused where the plan says so."""
    skeleton = build_skeleton(spec, DTYPES[plan.pipeline.dtype])
    if plan.pipeline.fuse_qkv:
        for module in skeleton.modules.values():
            fuse(module)
    return skeleton


def load_weights(
    skeleton: Skeleton, spec: ModelSpec, plan: Plan, device: torch.device, done: LayerDone
) -> None:
    """Fill every module of the skeleton: quantized on `device`, left where the plan places it."""
    for name, module in skeleton.modules.items():
        source = component_source(name, module, skeleton.folder, spec.seed)
        if plan.pipeline.fuse_qkv:
            source = FusedWeights(source)
        component = plan.pipeline.component(name)
        materialise(name, module, source, component, device, done)


def materialise(
    component: str,
    module: nn.Module,
    source: WeightSource,
    plan: ComponentPlan,
    device: torch.device,
    done: LayerDone,
) -> None:
    """Give every layer of `module` its weights in turn, quantized under `plan`.

    Numbers are made and quantized on `device` whatever the placement, so that one plan gives the
    same weights placed anywhere.
    """
    home = device if plan.placement.kind == "resident" else torch.device("cpu")
    shared: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    layers = list(module.named_modules())
    with torch.no_grad():
        for number, (name, layer) in enumerate(layers):
            before = {leaf: item for leaf, item in layer._parameters.items() if item is not None}
            _fill(layer, name, before, source, device, shared)
            if is_quantizable(name, layer, plan.quantization):
                quantize_layer(layer, plan.quantization.scheme)
            _move(layer, home)
            for leaf, original in before.items():
                final = layer._parameters[leaf]
                if final is not None:
                    shared.setdefault(id(original), (original, final))
            done(component, number + 1, len(layers))


def _fill(
    layer: nn.Module,
    name: str,
    parameters: dict[str, nn.Parameter],
    source: WeightSource,
    device: torch.device,
    shared: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> None:
    """`shared` keeps each original alive: an id is a name only as long as its object lives."""
    for leaf, parameter in parameters.items():
        if id(parameter) in shared:
            layer._parameters[leaf] = shared[id(parameter)][1]
            continue
        tensor = source.tensor(f"{name}.{leaf}" if name else leaf, parameter, device)
        layer._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _move(layer: nn.Module, home: torch.device) -> None:
    """Parameters and buffers of this layer alone, children excluded."""
    for leaf, parameter in layer._parameters.items():
        if parameter is not None and parameter.device != home:
            layer._parameters[leaf] = nn.Parameter(parameter.to(home), requires_grad=False)
    for leaf, buffer in layer._buffers.items():
        if buffer is not None:
            layer._buffers[leaf] = buffer.to(home)
