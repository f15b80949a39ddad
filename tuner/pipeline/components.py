"""What one module of a pipeline is made of: its role, its layers, its repeated blocks."""

from __future__ import annotations

import torch
from torch import nn

from registry.inventory import ComponentInventory, LinearLayer, RepeatedBlock, Role
from tuner.pipeline.check import takes_attention_backend
from tuner.pipeline.counting import META
from tuner.pipeline.fuse import can_fuse, fuse, is_fused


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
        supports_attention_backend=takes_attention_backend(module),
        supports_qkv_fusion=_fusion_reaches(module),
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


def _fusion_reaches(module: nn.Module) -> bool:
    """Whether diffusers' fusion reaches any layer of this class, tried on an empty copy."""
    if not can_fuse(module):
        return False
    with torch.device(META):
        trial: nn.Module = type(module).from_config(module.config)  # type: ignore[attr-defined]
    fuse(trial)
    return is_fused(trial)
