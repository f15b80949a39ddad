"""What stands against a plan, found before anything is touched: the plan's own impossibilities on
this pipeline, and what the app did to its pipeline before."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import ComponentPlan, Plan, StreamedBlocks
from tuner.pipeline.attention import why_no_attention
from tuner.pipeline.caching import step_cache_problems
from tuner.pipeline.dtypes import DTYPES
from tuner.pipeline.fuse import is_fused
from tuner.pipeline.graphs import RecordedForward
from tuner.pipeline.place import OFFLOADED, WHOLE_PIPELINE
from tuner.pipeline.quantize import is_quantized, why_no_scheme
from tuner.pipeline.streaming import streamed_names


def check_plan(plan: Plan, pipe: Any, modules: Mapping[str, nn.Module], device: Any) -> None:
    """Raises InvalidPlan for a plan that this pipeline on this device cannot take as written.
    Needs no weights."""
    unknown = sorted(set(plan.pipeline.components) - set(modules))
    if unknown:
        raise InvalidPlan(
            f"the plan names {', '.join(unknown)}, which this pipeline does not have;"
            f" its components: {', '.join(sorted(modules))}"
        )
    problems = [
        *_placement_problems(plan, modules, device),
        *_attention_problems(plan, modules, device),
        *_pipeline_problems(plan, pipe),
        *step_cache_problems(plan, pipe, modules),
    ]
    for name, component in plan.pipeline.components.items():
        problems += _component_problems(name, modules[name], component, device)
        problems += _scheme_problems(name, component, DTYPES[plan.pipeline.dtype], device)
    if problems:
        raise InvalidPlan("the plan does not fit this pipeline: " + "; ".join(problems))


def _placement_problems(
    plan: Plan, modules: Mapping[str, nn.Module], device: torch.device
) -> Iterable[str]:
    kinds = {name: item.placement.kind for name, item in plan.pipeline.components.items()}
    for whole in WHOLE_PIPELINE:
        others = sorted(name for name, kind in kinds.items() if kind != whole)
        if whole in kinds.values() and others:
            yield f"{whole} is for all components, and {', '.join(others)} is placed otherwise"
    for name, kind in kinds.items():
        if kind in OFFLOADED and device.type == "cpu":
            yield f"{name} is placed by {kind}, which needs a GPU"
        if kind == "release_after_use" and hasattr(modules[name], "decode"):
            yield f"{name} is placed by {kind}, which is for components that only encode"


def _attention_problems(
    plan: Plan, modules: Mapping[str, nn.Module], device: torch.device
) -> Iterable[str]:
    backend = plan.pipeline.attention_backend
    if backend == "default":
        return
    if not any(takes_attention_backend(module) for module in modules.values()):
        yield f"attention backend {backend!r} reaches no attention of this pipeline"
    reason = why_no_attention(backend, device)
    if reason is not None:
        yield f"attention backend {backend!r} does not run here: {reason}"


def _scheme_problems(
    name: str, plan: ComponentPlan, dtype: torch.dtype, device: torch.device
) -> Iterable[str]:
    for scheme in sorted(plan.quantization.schemes - {"none"}):
        reason = why_no_scheme(scheme, dtype, device)
        if reason is not None:
            yield f"{name} cannot be quantized to {scheme} here: {reason}"


def _pipeline_problems(plan: Plan, pipe: Any) -> Iterable[str]:
    options = plan.pipeline
    for name, wanted in (("tiling", options.vae.tiling), ("slicing", options.vae.slicing)):
        if wanted and not hasattr(getattr(pipe, "vae", None), f"enable_{name}"):
            yield f"it has no VAE that offers {name}"
    if options.text_tokens is not None:
        encode = getattr(pipe, "encode_prompt", None)
        if encode is None or "max_sequence_length" not in inspect.signature(encode).parameters:
            yield "it has no text length to set (text_tokens)"


def _component_problems(
    name: str, module: nn.Module, plan: ComponentPlan, device: torch.device
) -> Iterable[str]:
    if isinstance(plan.placement, StreamedBlocks):
        yield from _streaming_problems(name, module, plan, plan.placement)
    if plan.compilation.cuda_graph:
        yield from _graph_problems(name, module, plan, device)
    if plan.compilation.scope != "none" and hasattr(module, "decode"):
        yield f"{name} is compiled, and pipelines call its decode, which is not"
    elif plan.compilation.scope == "regional" and not getattr(module, "_repeated_blocks", None):
        yield (
            f"{name} ({type(module).__name__}) names no repeated blocks: compile it whole or not"
            " at all"
        )


def _graph_problems(
    name: str, module: nn.Module, plan: ComponentPlan, device: torch.device
) -> Iterable[str]:
    if device.type != "cuda":
        yield f"{name} is to be recorded as a CUDA graph, which needs a GPU"
    if plan.placement.kind != "resident":
        yield f"{name} is to be recorded as a CUDA graph, and its weights do not stay on the GPU"
    if hasattr(module, "decode"):
        yield f"{name} is to be recorded, and pipelines call its decode, which is not"


def _streaming_problems(
    name: str, module: nn.Module, plan: ComponentPlan, placement: StreamedBlocks
) -> Iterable[str]:
    resident, slots = placement.resident_blocks, placement.slots
    if hasattr(module, "decode") or not streamed_names(module, resident, slots):
        yield (
            f"{name} ({type(module).__name__}) has no repeated blocks that would stream with"
            f" resident_blocks {resident} and {slots} slots"
        )
    if plan.compilation.scope == "whole":
        yield (
            f"{name} streams its blocks, and one compiled forward cannot wait for them: compile it"
            " with scope regional or none"
        )


def takes_attention_backend(module: nn.Module) -> bool:
    """Whether diffusers' attention backends reach any attention of a denoiser."""
    if hasattr(module, "decode") or not hasattr(module, "set_attention_backend"):
        return False
    processors = (getattr(layer, "processor", None) for layer in module.modules())
    return any(hasattr(processor, "_attention_backend") for processor in processors)


def find_conflicts(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Why a component of an app's pipeline cannot take a plan, by component name."""
    found: dict[str, str] = {}
    for name, module in modules.items():
        reason = _conflict(module)
        if reason:
            found[name] = f"{name} {reason}"
    return found


def _is_hooked(layer: nn.Module) -> bool:
    """diffusers leaves an empty list of hooks on a denoiser that has run once."""
    registry = getattr(layer, "_diffusers_hook", None)
    return hasattr(layer, "_hf_hook") or bool(registry is not None and registry.hooks)


def _conflict(module: nn.Module) -> str | None:
    layers = list(module.modules())
    compiled = any(layer._compiled_call_impl is not None for layer in layers)
    if compiled or any(type(layer).__name__ == "OptimizedModule" for layer in layers):
        return "is already compiled"
    if isinstance(module.__dict__.get("forward"), RecordedForward):
        return "is already recorded as a CUDA graph"
    if any(is_quantized(layer) for layer in layers):
        return "is already quantized"
    if any(_is_hooked(layer) for layer in layers):
        return "already has offload or cache hooks"
    if is_fused(module):
        return "has its QKV projections already fused"
    if any(hasattr(layer, "lora_A") for layer in layers):
        return "carries LoRA layers; fuse_lora() and unload_lora_weights() merge them"
    devices = {parameter.device.type for parameter in module.parameters()} - {"cpu"}
    return f"has weights on {', '.join(sorted(devices))}, not on the CPU" if devices else None
