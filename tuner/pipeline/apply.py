"""A plan becomes a pipeline. The same code runs when a plan is measured and when an app uses it.

Order (engine version 1): fuse QKV; give each layer its weights, quantized, in turn; attention
backend; memory format; placement; compilation; VAE options; text padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from registry.base import Frozen
from registry.errors import InvalidPlan, PlanConflict
from registry.plan import ComponentPlan, Plan
from tuner.pipeline.compile import compile_component
from tuner.pipeline.fuse import fuse
from tuner.pipeline.load import DTYPES, LayerDone, load_skeleton, load_weights, materialise
from tuner.pipeline.place import pipeline_modules, place
from tuner.pipeline.quantize import is_quantized
from tuner.pipeline.weights import ModuleWeights
from tuner.protocol import ModelSpec


class ApplyReport(Frozen):
    """What `apply` did. `budget_proved` is True only for a plan with an exact record."""

    applied: tuple[str, ...]
    conflicts: tuple[str, ...] = ()
    budget_proved: bool = False


def nothing_done(component: str, done: int, total: int) -> None:
    """A LayerDone that ignores progress."""


def load(
    spec: ModelSpec,
    plan: Plan,
    device: torch.device,
    *,
    on_layer: LayerDone = nothing_done,
    after_weights: Callable[[], None] = lambda: None,
) -> Any:
    """The model as a diffusers pipeline under `plan`, its weights loaded layer by layer."""
    set_process_options(plan)
    skeleton = load_skeleton(spec, plan)
    check_components(plan, skeleton.modules)
    load_weights(skeleton, spec, plan, device, on_layer)
    pipe = skeleton.pipeline()
    pipe.set_progress_bar_config(disable=True)
    finish(pipe, plan, device)
    after_weights()
    return pipe


def apply(
    pipe: Any, plan: Plan, device: torch.device, *, allow_partial: bool = False
) -> ApplyReport:
    """Apply `plan` to an app's own pipeline, whose weights lie on the CPU.

    Raises PlanConflict for a pipeline that is already compiled, quantized, hooked or moved to a
    device, unless `allow_partial`: then what conflicts is left as it is and reported.
    """
    modules = pipeline_modules(pipe)
    check_components(plan, modules)
    conflicts = find_conflicts(modules)
    if conflicts and not allow_partial:
        raise PlanConflict(
            "the plan cannot be applied as written: " + "; ".join(conflicts.values()),
            hint="Pass a pipeline fresh from from_pretrained on the CPU, or allow_partial=True.",
        )
    set_process_options(plan)
    free = {name: module for name, module in modules.items() if name not in conflicts}
    for name, module in free.items():
        _rebuild(name, module, plan, device)
    finish(pipe, plan, device, only=frozenset(free))
    return ApplyReport(applied=tuple(sorted(free)), conflicts=tuple(conflicts.values()))


def _rebuild(name: str, module: nn.Module, plan: Plan, device: torch.device) -> None:
    module.to(DTYPES[plan.pipeline.dtype])
    if plan.pipeline.fuse_qkv:
        fuse(module)
    weights = ModuleWeights(dict(module.named_parameters()))
    component = plan.pipeline.component(name)
    materialise(name, module, weights, component, device, nothing_done)


def find_conflicts(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Why a component cannot take a plan, by component name."""
    found: dict[str, str] = {}
    for name, module in modules.items():
        reason = _conflict(module)
        if reason:
            found[name] = f"{name} {reason}"
    return found


def _conflict(module: nn.Module) -> str | None:
    layers = list(module.modules())
    if any(layer._compiled_call_impl is not None for layer in layers):
        return "is already compiled"
    if type(module).__name__ == "OptimizedModule":
        return "is already compiled"
    if any(is_quantized(layer) for layer in layers):
        return "is already quantized"
    if any(hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook") for layer in layers):
        return "already has offload or cache hooks"
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    return None if device == "cpu" else f"has its weights on {device!r}, not on the CPU"


def check_components(plan: Plan, modules: Any) -> None:
    """Raises InvalidPlan for a plan that names a component the pipeline does not have."""
    unknown = sorted(set(plan.pipeline.components) - set(modules))
    if unknown:
        raise InvalidPlan(
            f"the plan names {', '.join(unknown)}, which this pipeline does not have;"
            f" its components: {', '.join(sorted(modules))}"
        )


def finish(
    pipe: Any, plan: Plan, device: torch.device, *, only: frozenset[str] | None = None
) -> None:
    """Everything after the weights. `only` limits it to some components (a partial apply)."""
    options = plan.pipeline
    modules = pipeline_modules(pipe)
    for name, module in modules.items():
        if only is None or name in only:
            _before_placement(module, options.component(name), plan)
    if only is None or only == frozenset(modules):
        place(pipe, options, device)
    for name, module in modules.items():
        if only is None or name in only:
            compile_component(name, module, options.component(name).compilation)
    _vae_options(pipe, plan)
    _pad_text(pipe, options.text_tokens)


def _before_placement(module: nn.Module, component: ComponentPlan, plan: Plan) -> None:
    backend = plan.pipeline.attention_backend
    if backend != "default" and is_denoiser(module):
        module.set_attention_backend(backend)  # type: ignore[operator]
    if component.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def is_denoiser(module: nn.Module) -> bool:
    """Whether a module is a diffusers model with attention processors and no decoder."""
    return hasattr(module, "set_attention_backend") and not hasattr(module, "decode")


def _vae_options(pipe: Any, plan: Plan) -> None:
    if plan.pipeline.vae.tiling:
        pipe.vae.enable_tiling()
    if plan.pipeline.vae.slicing:
        pipe.vae.enable_slicing()


def _pad_text(pipe: Any, text_tokens: int | None) -> None:
    """Every prompt padded to one length, whatever the caller says: one shape, one graph."""
    if text_tokens is None:
        return
    encode = pipe.encode_prompt

    def padded(*args: Any, **kwargs: Any) -> Any:
        return encode(*args, **{**kwargs, "max_sequence_length": text_tokens})

    pipe.encode_prompt = padded


def set_process_options(plan: Plan) -> None:
    """Process-wide settings of the plan that torch takes after import."""
    options = plan.process
    torch.set_float32_matmul_precision(options.float32_matmul_precision)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch._dynamo.config.recompile_limit = options.dynamo_recompile_limit
    if options.threads is not None:
        torch.set_num_threads(options.threads)
