"""QKV fusion: one projection in place of three, before quantization, with the parts dropped."""

from __future__ import annotations

import torch
from torch import nn

from registry.errors import PlanConflict


def can_fuse(module: nn.Module) -> bool:
    """Whether diffusers offers fusion for this component."""
    return callable(getattr(module, "fuse_qkv_projections", None))


def fuse(module: nn.Module) -> None:
    """Fuse one component and free what fusion leaves behind. No-op where not offered.

    On the meta device the same call makes the fused layers' shapes; their weights come later."""
    if not can_fuse(module):
        return
    try:
        with torch.no_grad():
            module.fuse_qkv_projections()  # type: ignore[operator]
    except ValueError as error:
        raise PlanConflict(f"QKV fusion of {type(module).__name__}: {error}") from None
    drop_unfused(module)


def drop_unfused(module: nn.Module) -> None:
    """diffusers keeps the unfused layers beside the fused one; nothing calls them any more."""
    for layer in module.modules():
        if not getattr(layer, "fused_projections", False):
            continue
        if hasattr(layer, "to_qkv"):
            _drop(layer, ("to_q", "to_k", "to_v"))
        elif hasattr(layer, "to_kv"):
            _drop(layer, ("to_k", "to_v"))
        if hasattr(layer, "to_added_qkv"):
            _drop(layer, ("add_q_proj", "add_k_proj", "add_v_proj"))


def _drop(layer: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        layer._modules.pop(name, None)
