"""Layer by layer onto the device: materialise, quantize, and back to the host where it belongs.

The peak of a load is therefore the plan's own weights plus one layer, not the bf16 model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from registry.plan import ComponentPlan, Plan, StreamedBlocks
from tuner.pipeline.fuse import fuse
from tuner.pipeline.quantize import is_quantizable, quantize_layer
from tuner.pipeline.skeleton import Skeleton
from tuner.pipeline.streaming import streamed_names
from tuner.pipeline.weights import FusedWeights, WeightSource, component_source
from tuner.protocol import ModelSpec

LayerDone = Callable[[str, int, int], None]
"""Called with (component, layers done, layers in all)."""

HOST = torch.device("cpu")


def load_weights(
    skeleton: Skeleton, spec: ModelSpec, plan: Plan, device: torch.device, done: LayerDone
) -> None:
    """Fill every module of the skeleton, QKV fused where the plan says so: quantized on `device`,
    left where the plan places it."""
    for name, module in skeleton.modules.items():
        source = component_source(name, module, skeleton.folder, spec.seed)
        if plan.pipeline.fuse_qkv:
            source = FusedWeights(source, fuse(module))
        materialise(name, module, source, plan.pipeline.component(name), device, done)


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
    on_host = _on_host(module, plan)
    tied = _TiedParameters(module)
    layers = list(module.named_modules())
    with torch.no_grad():
        for number, (name, layer) in enumerate(layers):
            originals = {leaf: item for leaf, item in layer._parameters.items() if item is not None}
            _fill(layer, name, source, device, tied)
            if isinstance(layer, nn.Linear) and is_quantizable(name, layer, plan.quantization):
                quantize_layer(name, layer, plan.quantization.scheme)
            _move(layer, HOST if on_host(name) else device)
            for leaf, original in originals.items():
                tied.note(original, layer._parameters[leaf])
            done(component, number + 1, len(layers))


def _on_host(module: nn.Module, plan: ComponentPlan) -> Callable[[str], bool]:
    """Whether a layer, by its name, waits on the host."""
    placement = plan.placement
    if not isinstance(placement, StreamedBlocks):
        return lambda _: placement.kind != "resident"
    streamed = streamed_names(module, placement.resident_blocks, placement.slots)
    prefixes = tuple(f"{name}." for name in streamed)
    return lambda name: f"{name}.".startswith(prefixes)


class _TiedParameters:
    """Parameters that several layers share, and what each became.

    Originals are kept alive: an id is a name only as long as its object lives. All others are let
    go as their layer is done.
    """

    def __init__(self, module: nn.Module) -> None:
        own = [p for m in module.modules() for p in m._parameters.values() if p is not None]
        uses = Counter(id(parameter) for parameter in own)
        self._originals = {id(item): item for item in own if uses[id(item)] > 1}
        self._final: dict[int, nn.Parameter] = {}

    def final(self, original: nn.Parameter) -> nn.Parameter | None:
        return self._final.get(id(original))

    def note(self, original: nn.Parameter, final: nn.Parameter | None) -> None:
        if id(original) in self._originals and final is not None:
            self._final.setdefault(id(original), final)


def _fill(
    layer: nn.Module, name: str, source: WeightSource, device: torch.device, tied: _TiedParameters
) -> None:
    prefix = f"{name}." if name else ""
    for leaf, parameter in list(layer._parameters.items()):
        if parameter is None:
            continue
        final = tied.final(parameter)
        if final is None:
            tensor = source.tensor(f"{prefix}{leaf}", parameter, device)
            final = nn.Parameter(tensor, requires_grad=False)
        layer._parameters[leaf] = final
    for leaf, buffer in layer._buffers.items():
        if buffer is not None and leaf not in layer._non_persistent_buffers_set:
            layer._buffers[leaf] = source.buffer(f"{prefix}{leaf}", buffer)


def _move(layer: nn.Module, home: torch.device) -> None:
    """Parameters and buffers of this layer alone, children excluded."""
    for leaf, parameter in layer._parameters.items():
        if parameter is not None and parameter.device != home:
            layer._parameters[leaf] = nn.Parameter(parameter.to(home), requires_grad=False)
    for leaf, buffer in layer._buffers.items():
        if buffer is not None:
            layer._buffers[leaf] = buffer.to(home)
