"""QKV fusion: one projection in place of three, before quantization, with the parts dropped."""

from __future__ import annotations

import torch
from torch import nn

from registry.errors import PlanConflict

Parts = tuple[tuple[str, int], ...]
"""The layers that one fused layer replaced, by full name, with the rows of each."""

PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


def can_fuse(module: nn.Module) -> bool:
    """Whether diffusers offers fusion for this component. A VAE's one attention layer is left."""
    offered = callable(getattr(module, "fuse_qkv_projections", None))
    return offered and not hasattr(module, "decode")


def is_fused(module: nn.Module) -> bool:
    """Whether any attention of this component has its projections fused."""
    return any(getattr(layer, "fused_projections", False) for layer in module.modules())


def fuse(module: nn.Module) -> dict[str, Parts]:
    """Fuse one component and free what diffusers leaves behind. Nothing where not offered.

    Returns each fused layer's parts. On the meta device the same call makes the fused layers'
    shapes; their weights come later.
    """
    if not can_fuse(module):
        return {}
    try:
        with torch.no_grad():
            module.fuse_qkv_projections()  # type: ignore[operator]
    except ValueError as error:
        raise PlanConflict(f"QKV fusion of {type(module).__name__}: {error}") from None
    fused: dict[str, Parts] = {}
    for name, layer in module.named_modules():
        if getattr(layer, "fused_projections", False):
            fused |= _drop_parts(name, layer)
    return fused


def _drop_parts(owner: str, layer: nn.Module) -> dict[str, Parts]:
    """diffusers keeps the unfused layers beside the fused one; nothing calls them any more."""
    fused: dict[str, Parts] = {}
    for name, parts in PARTS.items():
        if not hasattr(layer, name) or not all(hasattr(layer, part) for part in parts):
            continue
        rows = [int(layer.get_submodule(part).out_features) for part in parts]  # type: ignore[arg-type]
        fused[f"{owner}.{name}"] = tuple(
            (f"{owner}.{part}", count) for part, count in zip(parts, rows, strict=True)
        )
        for part in parts:
            del layer._modules[part]
    return fused
