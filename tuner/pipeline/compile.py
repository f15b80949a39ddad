"""torch.compile as a plan says: each repeated block once, or a component's whole forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import Compilation
from tuner.pipeline.gelu import without_tanh
from tuner.pipeline.step_cache import compile_forwards


def compile_component(
    name: str, module: nn.Module, plan: Compilation, device: torch.device, *, cached: bool = False
) -> None:
    """Compile in place, so that names and hooks stay. Nothing is traced before the first call.
    `cached`: a step cache will be laid around each block, and so around compiled code.

    Raises InvalidPlan where the component has no repeated blocks to compile.
    """
    if plan.scope == "none":
        return
    arguments = _arguments(plan)
    _prepare(module, device)
    if plan.scope == "whole":
        module.compile(**arguments)
        return
    if not getattr(module, "_repeated_blocks", None):
        raise InvalidPlan(
            f"component {name!r} ({type(module).__name__}) names no repeated blocks:"
            " compile it whole or not at all"
        )
    if cached:
        compile_forwards(module, **arguments)
    else:
        module.compile_repeated_blocks(**arguments)  # type: ignore[operator]


def compile_block(block: nn.Module, plan: Compilation, device: torch.device) -> None:
    """One block alone, as a regional plan compiles each of its kind."""
    _prepare(block, device)
    block.compile(**_arguments(plan))


def _prepare(module: nn.Module, device: torch.device) -> None:
    """What compiled code is better made of than what it would be traced from."""
    without_tanh(module)
    if device.type == "cuda":
        from tuner.pipeline.norm_rope import fuse_norm_rope
        from tuner.pipeline.norm_rope_kernel import norm_rope

        fuse_norm_rope(module, norm_rope)


def _arguments(plan: Compilation) -> dict[str, Any]:
    arguments: dict[str, Any] = {"fullgraph": plan.fullgraph, "dynamic": plan.dynamic}
    if plan.inductor_options:
        arguments["options"] = dict(plan.inductor_options)
    elif plan.mode != "default":
        arguments["mode"] = plan.mode
    return arguments
