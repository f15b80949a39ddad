"""The catalog's tiny models on the CPU in float32, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.plan import (
    ComponentPlan,
    PipelineOptions,
    Plan,
    Quantization,
    ReleaseAfterUse,
    VaeOptions,
)
from registry.workload import Shape, Workload
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.place import pipeline_modules

CPU = torch.device("cpu")
FLUX = resolve_model("tiny-flux")
SDXL = resolve_model("tiny-sdxl")
SHAPE = Shape(height=64, width=64)
WORKLOAD = Workload(shapes=(SHAPE,))
PROMPT = "a red circle"
DENOISER = {"tiny-flux": "transformer", "tiny-sdxl": "unet"}


def plan(components: Mapping[str, ComponentPlan] | None = None, **options: Any) -> Plan:
    """A float32 plan with these pipeline options."""
    return Plan(
        pipeline=PipelineOptions(components=components or {}, **{"dtype": "float32", **options})
    )


def quantized(name: str, scheme: Any, **options: Any) -> Plan:
    """A plan that quantizes one component."""
    return plan({name: ComponentPlan(quantization=Quantization(scheme=scheme, **options))})


def uncompiled(spec: ModelSpec, **options: Any) -> Plan:
    """Something of everything that costs no compilation."""
    int8 = Quantization(scheme="int8_weight_only")
    float8 = Quantization(scheme="float8_weight_only", min_features=32)
    components = {
        DENOISER[spec.ref.name]: ComponentPlan(quantization=int8, channels_last=True),
        "text_encoder_2": ComponentPlan(quantization=float8, placement=ReleaseAfterUse()),
        "vae": ComponentPlan(channels_last=True),
    }
    return plan(components, fuse_qkv=True, vae=VaeOptions(tiling=True, slicing=True), **options)


def load(spec: ModelSpec, chosen: Plan | None = None) -> Any:
    return engine.load(spec, chosen or plan(), CPU)


def picture(pipe: Any, **arguments: Any) -> torch.Tensor:
    """One picture of two steps, shape (1, 3, height, width)."""
    chosen: dict[str, Any] = {
        "prompt": PROMPT,
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
        **arguments,
    }
    if "Flux" in type(pipe).__name__:
        chosen.setdefault("max_sequence_length", 32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        images: torch.Tensor = pipe(**chosen).images
    return images


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest of two pictures' differences; they lie in [0, 1]."""
    return float((left - right).abs().max())


def parameters(pipe: Any) -> dict[str, torch.Tensor]:
    """Every parameter of a pipeline by component and name."""
    return {
        f"{component}.{name}": tensor
        for component, module in pipeline_modules(pipe).items()
        for name, tensor in module.named_parameters()
    }


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    """Whether two modules hold the same unquantized parameters, bit for bit."""
    ours, theirs = dict(left.named_parameters()), dict(right.named_parameters())
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def saved(spec: ModelSpec, folder: Path) -> Path:
    """A tiny model's folder as diffusers saves it."""
    load(spec).save_pretrained(str(folder))
    return folder
