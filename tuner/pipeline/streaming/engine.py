"""Puts a module's repeated blocks on the host, and their weights on the device as they run."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuner.pipeline.streaming.lane import Lane, Slot, StreamedBlock
from tuner.pipeline.streaming.link import PlainLink, link_to
from tuner.pipeline.streaming.packing import pack_blocks, packed_run
from tuner.spread import slot_bytes, streamed_blocks

STREAMED = "_streamed_block"
"""Where a streamed block's lane and weights are found in its module's `__dict__`."""


class NothingToStream(ValueError):
    """The module has no repeated blocks, or all of them would stay on the device."""


@dataclass(frozen=True)
class StreamReport:
    """What `stream_blocks` did. `host_bytes` wait in page-locked memory, `slot_bytes` on the device
    are what they take turns in."""

    streamed: tuple[str, ...]
    resident: tuple[str, ...]
    host_bytes: int
    slot_bytes: int


def stream_blocks(
    module: nn.Module,
    device: torch.device,
    *,
    resident_blocks: int = 0,
    slots: int = 2,
    block_classes: Collection[str] | None = None,
) -> StreamReport:
    """Keep `module` on `device` but for its repeated blocks, which stream; at least
    `resident_blocks` of them stay there too, spread evenly between the others.

    The weights may lie on the host or on the device, quantized by torchao or not. Afterwards the
    module is called as before, for inference only, from one thread at a time; compile its blocks in
    place (`compile_repeated_blocks`) after this call, never the module as a whole. Its parameters
    are no longer its weights: save or move them before.

    `slots` buffers serve each class of blocks. `block_classes` names the classes; None takes what
    diffusers or transformers say of the model. Raises NothingToStream, and HostMemoryError where
    the host cannot hold the weights.
    """
    blocks = repeated_blocks(module, block_classes)
    chosen = _chosen(blocks, resident_blocks, slots)
    if not chosen:
        raise NothingToStream(
            f"nothing of {type(module).__name__} would stream: of its {len(blocks)} repeated blocks"
            f" {resident_blocks} or more stay, and {slots} of a class fit in its slots"
        )
    module.requires_grad_(False)
    with torch.inference_mode(mode=False), torch.no_grad():
        _move_others(module, {id(blocks[name]) for name in chosen}, device)
        pack_blocks((blocks[name] for name in chosen), device)
        lanes = _Lanes(link_to(device), {name: blocks[name] for name in chosen}, slots)
    for block in blocks.values():
        own: Any = type(block)
        block.__class__ = _called_class(own)
    for name, (lane, streamed) in lanes.found.items():
        blocks[name].__dict__[STREAMED] = (lane, streamed)
    return StreamReport(
        streamed=chosen,
        resident=tuple(name for name in blocks if name not in lanes.found),
        host_bytes=sum(streamed.host.numel() for _, streamed in lanes.found.values()),
        slot_bytes=lanes.slot_bytes,
    )


class _Streaming:
    """Mixed into the class of every repeated block. It acts in `__call__`, outside of what
    torch.compile compiles, and on resident blocks too, so that all share their compiled code."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.__dict__.get(STREAMED)
        if found is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        lane, block = found
        slot = lane.enter(block)
        failed = True
        try:
            output = super().__call__(*args, **kwargs)  # type: ignore[misc]
            failed = False
        finally:
            lane.leave(block, slot, failed=failed)
        return output


@functools.cache
def _called_class(own: Any) -> Any:
    """One for each class of blocks, under its name: diffusers compiles blocks by name, and compiled
    code is for one class."""
    if issubclass(own, _Streaming):
        return own
    return type(
        own.__name__,
        (_Streaming, own),
        {"__module__": own.__module__, "__qualname__": own.__qualname__},
    )


def repeated_blocks(
    module: nn.Module, classes: Collection[str] | None = None
) -> dict[str, nn.Module]:
    """The blocks that can stream by name, in the module's order: members of lists, of the classes
    that the model's library calls repeated or never splits over devices."""
    if classes is None:
        named = getattr(module, "_repeated_blocks", None) or getattr(
            module, "_no_split_modules", None
        )
        classes = frozenset(named or ())
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(layer, nn.ModuleList) and not inside:
            members = [item for item in layer if type(item).__name__ in classes]
            if len(members) == len(layer):
                found |= {f"{name}.{number}": item for number, item in enumerate(layer)}
    every = _uses(module)
    return {
        name: item
        for name, item in found.items()
        if all(every[key] == uses for key, uses in _uses(item).items())
    }


def _uses(module: nn.Module) -> Counter[int]:
    """In how many places of a module each tensor hangs. A block that streamed would take a tensor
    away from what else uses it."""
    tables = ((layer._parameters, layer._buffers) for layer in module.modules())
    tensors = (item for pair in tables for table in pair for item in table.values())
    return Counter(id(item) for item in tensors if item is not None)


def streamed_names(module: nn.Module, resident_blocks: int, slots: int) -> tuple[str, ...]:
    """Which blocks `stream_blocks` would stream; the weights may be on the meta device."""
    return _chosen(repeated_blocks(module), resident_blocks, slots)


def _chosen(blocks: dict[str, nn.Module], resident: int, slots: int) -> tuple[str, ...]:
    """Which blocks stream, by their elements: the same before and after they are quantized."""
    kinds = [type(item).__name__ for item in blocks.values()]
    sizes = [sum(tensor.numel() for tensor in item.parameters()) for item in blocks.values()]
    return tuple(itertools.compress(blocks, streamed_blocks(kinds, sizes, resident, slots)))


def _move_others(module: nn.Module, streamed: set[int], device: torch.device) -> None:
    """Everything outside the streamed blocks to the device, tied tensors once."""
    moved: dict[int, Any] = {}
    waiting = [module]
    while waiting:
        layer = waiting.pop()
        if id(layer) in streamed:
            continue
        waiting += layer.children()
        for table in (layer._parameters, layer._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.device != device:
                    if id(tensor) not in moved:
                        moved[id(tensor)] = (tensor, _on(tensor, device))
                    table[name] = moved[id(tensor)][1]


def _on(tensor: torch.Tensor, device: torch.device) -> Any:
    there = tensor.detach().to(device)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(there, requires_grad=False) if is_parameter else there


class _Lanes:
    """One lane for each class of streamed blocks."""

    def __init__(self, link: PlainLink, blocks: Mapping[str, nn.Module], slots: int) -> None:
        runs = {name: _run_of(block) for name, block in blocks.items()}
        kinds = [type(block).__name__ for block in blocks.values()]
        sizes = [run.numel() for run in runs.values()]
        room = slot_bytes(kinds, sizes, [True] * len(kinds), slots)
        self.slot_bytes = sum(room.values())
        self.found: dict[str, tuple[Lane, StreamedBlock]] = {}
        for kind, size in room.items():
            own = [Slot(link.buffer(size // slots)) for _ in range(slots)]
            lane = Lane(link, own)
            streamed = {
                name: StreamedBlock(block, runs[name], own)
                for name, block in blocks.items()
                if type(block).__name__ == kind
            }
            lane.start(tuple(streamed.values()))
            self.found |= {name: (lane, item) for name, item in streamed.items()}


def _run_of(block: nn.Module) -> torch.Tensor:
    run = packed_run(block)
    if run is None:
        raise RuntimeError("a block that was packed has lost its host memory")
    return run
