"""Other pipelines around the same denoiser: img2img, inpainting, ControlNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from tests.tuner.pipeline.tiny import (
    CPU,
    DENOISER,
    FLUX,
    SDXL,
    difference,
    load,
    picture,
    uncompiled,
)
from tuner.model_spec import ModelSpec
from tuner.pipeline import apply as engine
from tuner.pipeline.quantize import layer_types


def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def mask() -> torch.Tensor:
    return (image()[:, :1] > 0.5).float()


def around(spec: ModelSpec, class_name: str, **extra: Any) -> Any:
    """Another diffusers pipeline around the components of a tiny one."""
    parts = load(spec).components
    accepted = {name: item for name, item in parts.items() if item is not None}
    return getattr(diffusers, class_name)(**accepted, **extra)


def flux_controlnet() -> nn.Module:
    config = load(FLUX).transformer.config
    names = "in_channels attention_head_dim num_attention_heads joint_attention_dim patch_size"
    names += " pooled_projection_dim guidance_embeds axes_dims_rope"
    torch.manual_seed(0)
    model: Any = diffusers.FluxControlNetModel(
        num_layers=1, num_single_layers=1, **{name: config[name] for name in names.split()}
    )
    return awake(model)


def sdxl_controlnet() -> nn.Module:
    torch.manual_seed(0)
    # One halving of the hint, as the tiny VAE's.
    model: Any = diffusers.ControlNetModel.from_unet(
        load(SDXL).unet, conditioning_embedding_out_channels=(16, 32)
    )
    return awake(model)


def awake(model: nn.Module) -> nn.Module:
    """ControlNets begin with zero layers, that is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(0.0, 0.05)
    return model


VARIANTS: list[tuple[ModelSpec, str, dict[str, Any], Callable[[], nn.Module] | None]] = [
    (FLUX, "FluxImg2ImgPipeline", {"image": image(), "strength": 0.5}, None),
    (FLUX, "FluxInpaintPipeline", {"image": image(), "mask_image": mask(), "strength": 0.5}, None),
    (FLUX, "FluxControlNetPipeline", {"control_image": image()}, flux_controlnet),
    (SDXL, "StableDiffusionXLImg2ImgPipeline", {"image": image(), "strength": 0.5}, None),
    (
        SDXL,
        "StableDiffusionXLInpaintPipeline",
        {"image": image(), "mask_image": mask(), "strength": 0.5},
        None,
    ),
    (SDXL, "StableDiffusionXLControlNetPipeline", {"image": image()}, sdxl_controlnet),
]


@pytest.mark.parametrize(
    ("spec", "class_name", "arguments", "controlnet"), VARIANTS, ids=[item[1] for item in VARIANTS]
)
def test_other_pipelines_around_the_same_denoiser(
    spec: ModelSpec,
    class_name: str,
    arguments: dict[str, Any],
    controlnet: Callable[[], nn.Module] | None,
) -> None:
    """img2img, inpainting and ControlNet take a text-to-image plan; a ControlNet stays as it is."""
    extra = {"controlnet": controlnet()} if controlnet else {}
    settings = {"num_inference_steps": 4, **arguments}
    pipe = around(spec, class_name, **extra)
    wanted = picture(pipe, **settings)
    report = engine.apply(pipe, uncompiled(spec), CPU)
    found = picture(pipe, **settings)
    assert {"vae", DENOISER[spec.ref.name], *extra} <= set(report.applied)
    assert 0.0 < difference(found, wanted) < 0.3
    if extra:
        assert not any("Tensor" in kind for kind in layer_types(extra["controlnet"]))
        assert difference(found, picture(load(spec, uncompiled(spec)), num_inference_steps=4)) > 0.0
