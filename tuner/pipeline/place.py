"""Where each component lives and how it reaches the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import GroupOffload, PipelineOptions
from tuner.pipeline.release import release_after_use

WHOLE_PIPELINE = ("model_offload", "sequential_offload")
"""Placements that diffusers applies to every component of a pipeline at once."""


def place(pipe: Any, options: PipelineOptions, device: torch.device) -> None:
    """Place every module of `pipe`, which lies on the device or the host as its plan says.

    Raises InvalidPlan for combinations that diffusers' hooks cannot express.
    """
    modules = pipeline_modules(pipe)
    kinds = {name: options.component(name).placement.kind for name in modules}
    for whole in WHOLE_PIPELINE:
        if whole in kinds.values():
            _place_whole(pipe, whole, kinds, device)
            return
    for name, module in modules.items():
        _place_one(name, module, options, device)


def pipeline_modules(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's components that hold weights, by name."""
    return {name: item for name, item in pipe.components.items() if isinstance(item, nn.Module)}


def _place_whole(pipe: Any, kind: str, kinds: Mapping[str, str], device: torch.device) -> None:
    others = sorted(name for name, own in kinds.items() if own != kind)
    if others:
        raise InvalidPlan(
            f"{kind} is for all components of a pipeline; placed otherwise: {', '.join(others)}"
        )
    if kind == "model_offload":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)


def _place_one(
    name: str, module: nn.Module, options: PipelineOptions, device: torch.device
) -> None:
    placement = options.component(name).placement
    if placement.kind == "resident":
        module.to(device)
    elif placement.kind == "release_after_use":
        release_after_use(module, device)
    elif isinstance(placement, GroupOffload):
        _group_offload(module, placement, device)
    else:
        raise InvalidPlan(f"component {name!r} cannot be placed by {placement.kind!r} alone")


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
