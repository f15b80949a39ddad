"""A plan becomes a pipeline. The same code runs when a plan is measured and when an app uses it.

Order (engine version 2): fuse QKV; give each layer its weights, quantized, in turn; attention
backend; memory format; placement; compilation, for which GELUs lose their tanh; CUDA graphs; step
cache; VAE options; text padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from registry.environment import Environment
from registry.errors import PlanConflict
from registry.plan import Compilation, Plan
from tuner.model_spec import ModelSpec
from tuner.pipeline.ahead import KEEPS_TENSORS, Ahead
from tuner.pipeline.attention import set_attention
from tuner.pipeline.caching import cacheable, enable_step_cache
from tuner.pipeline.check import check_plan, find_conflicts, takes_attention_backend
from tuner.pipeline.compile import compile_component
from tuner.pipeline.dtypes import DTYPES, cast
from tuner.pipeline.fuse import fuse
from tuner.pipeline.graphs import record
from tuner.pipeline.int8_kernels import kernel_tuner_conflicts
from tuner.pipeline.load import LayerDone, load_weights, materialise
from tuner.pipeline.place import WHOLE_PIPELINE, pipeline_modules, place
from tuner.pipeline.process_options import allocator_conflicts, set_process_options
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.weights import ModuleWeights
from tuner.start_report import StartReport


class ApplyReport(StartReport):
    """What `apply` did: components that took the plan, and what stood against it elsewhere.
    `budget_proved` is True only for a plan with an exact record."""

    applied: tuple[str, ...]
    conflicts: tuple[str, ...] = ()
    budget_proved: bool = False


def default_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_of(environment: Environment) -> torch.device:
    """The device that plans for this environment run on, in this process."""
    return default_device() if environment.hardware.device == "cuda" else torch.device("cpu")


def peak_vram_bytes(device: torch.device) -> int | None:
    """What torch's allocator held there at most, None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def nothing_done(component: str, done: int, total: int) -> None:
    """A LayerDone that ignores progress."""


def load(
    spec: ModelSpec,
    plan: Plan,
    device: torch.device,
    *,
    on_layer: LayerDone = nothing_done,
    ahead: Ahead | None = None,
) -> Any:
    """The model as a diffusers pipeline under `plan`, its weights loaded layer by layer. `ahead`
    has code compiled ahead of time, or notes what to compile.

    Raises InvalidPlan for a plan the model cannot take, and PlanConflict for a process in which the
    plan's settings can no longer be made: before any weight is read or any setting made.
    """
    skeleton = build_skeleton(spec, DTYPES[plan.pipeline.dtype])
    pipe = skeleton.pipeline()
    check_plan(plan, pipe, skeleton.modules, device)
    _settings(plan, device, allow_partial=False)
    load_weights(skeleton, spec, plan, device, on_layer)
    pipe.set_progress_bar_config(disable=True)
    _finish(pipe, plan, device, skeleton.modules, ahead)
    return pipe


def apply(
    pipe: Any,
    plan: Plan,
    device: torch.device,
    *,
    allow_partial: bool = False,
    ahead: Ahead | None = None,
) -> ApplyReport:
    """Apply `plan` to an app's own pipeline, whose weights lie on the CPU. `ahead` as
    `load`'s.

    Raises InvalidPlan for a plan the pipeline cannot take, and PlanConflict for a pipeline that is
    already compiled, quantized, hooked or moved to a device; nothing was touched then. With
    `allow_partial` what conflicts is left as it is and reported.
    """
    modules = pipeline_modules(pipe)
    check_plan(plan, pipe, modules, device)
    taken = find_conflicts(modules)
    conflicts = [*taken.values(), *_whole_conflicts(plan, taken)]
    if conflicts and not allow_partial:
        raise PlanConflict(
            "the plan cannot be applied as written: " + "; ".join(conflicts),
            hint="Pass a pipeline fresh from from_pretrained on the CPU, or allow_partial=True.",
        )
    if _whole_conflicts(plan, taken):
        return ApplyReport(applied=(), conflicts=tuple(conflicts))
    conflicts += _settings(plan, device, allow_partial=allow_partial)
    free = {name: module for name, module in modules.items() if name not in taken}
    for name, module in free.items():
        _rebuild(name, module, plan, device)
    _finish(pipe, plan, device, free, ahead)
    return ApplyReport(applied=tuple(sorted(free)), conflicts=tuple(conflicts))


def _whole_conflicts(plan: Plan, taken: Mapping[str, str]) -> list[str]:
    """Offloading a whole pipeline of which a part is not free: then nothing can be applied."""
    kinds = {item.placement.kind for item in plan.pipeline.components.values()}
    return [
        f"{whole} is for all components of a pipeline"
        for whole in WHOLE_PIPELINE
        if taken and whole in kinds
    ]


def _settings(plan: Plan, device: torch.device, *, allow_partial: bool) -> tuple[str, ...]:
    conflicts: tuple[str, ...] = ()
    for conflicts_of in (kernel_tuner_conflicts, allocator_conflicts):
        conflicts += conflicts_of(plan, device)
        if conflicts and not allow_partial:
            raise PlanConflict("; ".join(conflicts))
    set_process_options(plan)
    return conflicts


def _rebuild(name: str, module: nn.Module, plan: Plan, device: torch.device) -> None:
    cast(module, DTYPES[plan.pipeline.dtype])
    if plan.pipeline.fuse_qkv:
        fuse(module)
    weights = ModuleWeights(dict(module.named_parameters()))
    component = plan.pipeline.component(name)
    materialise(name, module, weights, component, device, nothing_done)


def _finish(
    pipe: Any,
    plan: Plan,
    device: torch.device,
    modules: Mapping[str, nn.Module],
    ahead: Ahead | None,
) -> None:
    """Everything after the weights, for `modules` of the pipeline."""
    options = plan.pipeline
    for name, module in modules.items():
        if options.attention_backend != "default" and takes_attention_backend(module):
            set_attention(module, options.attention_backend)
        if options.component(name).channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    place(pipe, options, device, modules)
    cached = cacheable(modules) if options.step_cache is not None else ()
    for name, module in modules.items():
        component = options.component(name)
        suited = ahead if component.placement.kind in KEEPS_TENSORS else None
        _compile(name, module, component.compilation, device, suited, cached=name in cached)
    enable_step_cache(pipe, options, modules)
    if options.vae.tiling:
        pipe.vae.enable_tiling()
    if options.vae.slicing:
        pipe.vae.enable_slicing()
    if options.text_tokens is not None:
        _pad_text(pipe, options.text_tokens)


def _compile(
    name: str,
    module: nn.Module,
    plan: Compilation,
    device: torch.device,
    ahead: Ahead | None,
    *,
    cached: bool,
) -> None:
    compile_component(name, module, plan, device, cached=cached)
    if ahead is not None:
        ahead.attach(module, plan)
    if plan.cuda_graph:
        record(module, device)


def _pad_text(pipe: Any, text_tokens: int) -> None:
    """Every prompt padded to one length, whatever the caller says: one shape, one graph."""
    encode = pipe.encode_prompt

    def padded(*args: Any, **kwargs: Any) -> Any:
        return encode(*args, **{**kwargs, "max_sequence_length": text_tokens})

    pipe.encode_prompt = padded
