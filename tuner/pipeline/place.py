"""Where each component lives and how it reaches the device."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from registry.errors import DeviceError, PlanConflict
from registry.plan import GroupOffload, PipelineOptions, StreamedBlocks
from tuner.pipeline.release import release_after_use
from tuner.pipeline.streaming import HostMemoryError, stream_blocks

WHOLE_PIPELINE = ("model_offload", "sequential_offload")
"""Placements that diffusers applies to every component of a pipeline at once."""

OFFLOADED = (*WHOLE_PIPELINE, "group_offload")
"""Placements whose weights lie on the host and travel: they need a GPU."""


def pipeline_modules(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's components that hold weights, by name."""
    return {name: item for name, item in pipe.components.items() if isinstance(item, nn.Module)}


def place(
    pipe: Any, options: PipelineOptions, device: torch.device, names: Collection[str]
) -> None:
    """Place the named components of `pipe`, which lie on the device or the host as their plan says.

    Raises PlanConflict for a placement of the whole pipeline when only a part of it is free, and
    DeviceError where the host cannot hold what streams.
    """
    modules = pipeline_modules(pipe)
    kinds = {item.placement.kind for item in options.components.values()}
    for whole in WHOLE_PIPELINE:
        if whole in kinds:
            _place_whole(pipe, whole, options, device, set(modules) - set(names))
            return
    for name in names:
        _place_one(modules[name], options.component(name).placement, device)


def _place_whole(
    pipe: Any, kind: str, options: PipelineOptions, device: torch.device, taken: set[str]
) -> None:
    """Components that the plan does not name (a ControlNet of the app's) stay resident."""
    if taken:
        raise PlanConflict(
            f"{kind} is for all components of a pipeline; not free: {', '.join(sorted(taken))}"
        )
    _keep_resident(pipe, set(pipeline_modules(pipe)) - set(options.components))
    if kind == "model_offload":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)


def _keep_resident(pipe: Any, names: set[str]) -> None:
    """Leave components out of what diffusers hooks: this pipeline's lists, not its class's."""
    pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, *sorted(names)]
    order = pipe.model_cpu_offload_seq
    if order is not None:
        kept = [name for name in order.split("->") if name not in names]
        pipe.model_cpu_offload_seq = "->".join(kept)


def _place_one(module: nn.Module, placement: Any, device: torch.device) -> None:
    if placement.kind == "resident":
        module.to(device)
    elif placement.kind == "release_after_use":
        release_after_use(module, device)
    elif isinstance(placement, StreamedBlocks):
        _stream(module, placement, device)
    else:
        _group_offload(module, placement, device)


def _stream(module: nn.Module, placement: StreamedBlocks, device: torch.device) -> None:
    with host_memory(module):
        stream_blocks(
            module, device, resident_blocks=placement.resident_blocks, slots=placement.slots
        )


@contextmanager
def host_memory(module: nn.Module) -> Iterator[None]:
    """Raises DeviceError where the host cannot hold what streams of `module`."""
    try:
        yield
    except HostMemoryError as error:
        raise DeviceError(f"{type(module).__name__}: {error}") from error


def _group_offload(module: nn.Module, placement: GroupOffload, device: torch.device) -> None:
    from diffusers.hooks.group_offloading import apply_group_offloading

    block = placement.granularity == "block"
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=f"{placement.granularity}_level",
        num_blocks_per_group=placement.blocks_per_group if block else None,
        non_blocking=placement.stream,
        use_stream=placement.stream,
        record_stream=placement.stream,
    )
