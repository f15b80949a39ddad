"""Recipes of diffusers' documentation for speed and memory, as a person writes them.

From its pages on reducing memory, on faster inference, on torchao and on FLUX. None of our engine's
code is used: these are what it is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Recipe = Callable[[Any, torch.device], None]
"""Called with a pipeline on the host and the device that it is to run on."""


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


def resident(pipe: Any, device: torch.device) -> None:
    pipe.to(device)


def model_offload(pipe: Any, device: torch.device) -> None:
    pipe.enable_model_cpu_offload(device=device)


def sequential_offload(pipe: Any, device: torch.device) -> None:
    pipe.enable_sequential_cpu_offload(device=device)


def group_offload_leaf(pipe: Any, device: torch.device) -> None:
    pipe.enable_group_offload(
        onload_device=device, offload_type="leaf_level", use_stream=True, record_stream=True
    )


def group_offload_block(pipe: Any, device: torch.device) -> None:
    pipe.enable_group_offload(
        onload_device=device, offload_type="block_level", num_blocks_per_group=1, use_stream=True
    )


def layerwise_float8(pipe: Any, _: torch.device) -> None:
    denoiser = denoiser_of(pipe)
    denoiser.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=denoiser.dtype
    )


def float8_rows(pipe: Any, device: torch.device) -> None:
    """Quantized on the device, as torchao's float8 needs it."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        PerRow,
        quantize_,
    )

    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(denoiser_of(pipe).to(device), config)


def int8_weights(pipe: Any, device: torch.device) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(denoiser_of(pipe).to(device), Int8WeightOnlyConfig())
    denoiser_of(pipe).to("cpu")


def cudnn_attention(pipe: Any, _: torch.device) -> None:
    denoiser_of(pipe).set_attention_backend("_native_cudnn")


def compiled(pipe: Any, _: torch.device) -> None:
    denoiser_of(pipe).compile_repeated_blocks(fullgraph=True)


def compiled_with_breaks(pipe: Any, _: torch.device) -> None:
    """Offloading's hooks break graphs."""
    denoiser_of(pipe).compile_repeated_blocks()


def tiled(pipe: Any, _: torch.device) -> None:
    pipe.vae.enable_tiling()


def steps(*recipes: Recipe) -> Recipe:
    """One after another."""

    def apply(pipe: Any, device: torch.device) -> None:
        for recipe in recipes:
            recipe(pipe, device)

    return apply


RECIPES: Mapping[str, Recipe] = {
    "resident": resident,
    "resident, compiled": steps(resident, compiled),
    "float8 rows, cuDNN, compiled": steps(float8_rows, resident, cudnn_attention, compiled),
    "int8 weights, compiled": steps(int8_weights, resident, compiled),
    "layerwise float8": steps(layerwise_float8, resident),
    "layerwise float8, compiled": steps(layerwise_float8, resident, compiled_with_breaks),
    "model offload": steps(model_offload, tiled),
    "model offload, compiled": steps(model_offload, tiled, compiled),
    "layerwise float8, model offload": steps(layerwise_float8, model_offload, tiled),
    "int8 weights, model offload": steps(int8_weights, model_offload, tiled),
    "group offload by leaf": steps(group_offload_leaf, tiled),
    "group offload by leaf, compiled": steps(group_offload_leaf, tiled, compiled_with_breaks),
    "group offload by block": steps(group_offload_block, tiled),
    "layerwise float8, group offload by leaf": steps(layerwise_float8, group_offload_leaf, tiled),
    "float8 rows, group offload by leaf": steps(float8_rows, group_offload_leaf, tiled),
    "sequential offload": steps(sequential_offload, tiled),
}
"""By what a table calls them; offloading comes with VAE tiling, as the documentation has it."""
