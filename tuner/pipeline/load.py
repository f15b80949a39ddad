"""Layer by layer onto the device: materialise, quantize, and back to the host where it belongs.

The peak of a load is therefore the plan's own weights plus one layer, not the bf16 model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from registry.plan import ComponentPlan, Plan, StreamedBlocks
from tuner.model_spec import ModelSpec
from tuner.pipeline.fuse import fuse
from tuner.pipeline.place import host_memory
from tuner.pipeline.quantize import quantize_layer, scheme_of
from tuner.pipeline.skeleton import Skeleton
from tuner.pipeline.streaming import pack_blocks, streamed_names
from tuner.pipeline.weights import FusedWeights, WeightSource, component_source

LayerDone = Callable[[str, int, int], None]
"""Called with (component, layers done, layers in all)."""

HOST = torch.device("cpu")
ON_DEVICE = frozenset({"resident", "streamed_blocks"})
"""Placements whose layers are left on the device; blocks that stream leave it one by one."""


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
    same weights placed anywhere. A block that streams goes to page-locked memory as it is complete.
    Raises DeviceError where the host cannot hold it.
    """
    layers = list(module.named_modules())
    filling = _filling(component, layers, module, source, plan, device, done)
    if not isinstance(plan.placement, StreamedBlocks):
        deque(filling, maxlen=0)
        return
    streamed = streamed_names(module, plan.placement.resident_blocks, plan.placement.slots)
    ends = {_last_inside(name, layers): name for name in streamed}
    complete = (module.get_submodule(ends[name]) for name in filling if name in ends)
    with host_memory(module):
        pack_blocks(complete, device)


def _filling(
    component: str,
    layers: Sequence[tuple[str, nn.Module]],
    module: nn.Module,
    source: WeightSource,
    plan: ComponentPlan,
    device: torch.device,
    done: LayerDone,
) -> Iterator[str]:
    """Names of layers as each has its weights, quantized and at home."""
    home = device if plan.placement.kind in ON_DEVICE else HOST
    tied = _TiedParameters(module)
    for number, (name, layer) in enumerate(layers):
        with torch.no_grad():
            originals = {leaf: item for leaf, item in layer._parameters.items() if item is not None}
            _fill(layer, name, source, device, tied)
            if isinstance(layer, nn.Linear):
                scheme = scheme_of(name, layer, plan.quantization)
                if scheme != "none":
                    quantize_layer(name, layer, scheme)
            _move(layer, home)
            for leaf, original in originals.items():
                tied.note(original, layer._parameters[leaf])
        done(component, number + 1, len(layers))
        yield name


def _last_inside(block: str, layers: Sequence[tuple[str, nn.Module]]) -> str:
    """The last of a block's layers to be filled."""
    return [name for name, _ in layers if f"{name}.".startswith(f"{block}.")][-1]


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
