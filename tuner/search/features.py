"""A plan as a set of named choices: what the search compares, groups and learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from registry.plan import Compilation, ComponentPlan, PipelineOptions, Placement, Plan, Quantization

COMPILE_COST = {"none": 0.5, "regional": 1.0, "whole": 4.0}
AUTOTUNE_COST = 8.0
OPTIONS_COST = 5.0
"""Relative duration of a trial by compile scope, and what `max-autotune` or Inductor's search over
kernel parameters multiply it by.

On FLUX (one H200): regional 14 s, whole model 115 s, max-autotune of the blocks over 390 s. On SDXL
there a regional trial took 20 s, one with Inductor's search was not done after 70.
"""


EAGER_ROUNDING = "emulate_precision_casts"
QUICK_OPTIONS = frozenset({EAGER_ROUNDING, "max_autotune_pointwise"})
"""Inductor options that cost a trial no time to speak of."""

DETAILS = frozenset(
    {"skip", "min_features", "layers", "fullgraph", "dynamic", "granularity", "stream"}
    | {"resident_blocks", "slots"}
)
"""Parts of a choice that make a plan no less simple."""


def placement_label(placement: Placement) -> str:
    """ "group_offload/leaf/stream" and the like: one word per distinct behaviour."""
    if placement.kind == "streamed_blocks":
        return f"{placement.kind}/{placement.resident_blocks}/{placement.slots}"
    if placement.kind != "group_offload":
        return placement.kind
    stream = "stream" if placement.stream else f"{placement.blocks_per_group}"
    return f"{placement.kind}/{placement.granularity}/{stream}"


def denoiser_features(plan: Plan, denoiser: str) -> frozenset[str]:
    """Choices that can change the denoiser's step time, one "axis=value" each."""
    return _denoiser_features(plan, plan.pipeline.component(denoiser))


def features(plan: Plan, denoiser: str) -> frozenset[str]:
    """Every choice of the plan: the denoiser's and those of the components around it."""
    return denoiser_features(plan, denoiser) | frozenset(_surroundings(plan.pipeline, denoiser))


def denoiser_signature(plan: Plan, denoiser: str) -> str:
    """Equal for plans whose denoiser runs the same way: one step time answers for all."""
    return "|".join(sorted(denoiser_features(plan, denoiser)))


def denoiser_picture(plan: Plan, denoiser: str) -> str | None:
    """Equal for plans whose quantized or cached denoiser computes the same but for rounding by
    kernels; None where it is neither."""
    quantization, cache = plan.pipeline.component(denoiser).quantization, plan.pipeline.step_cache
    if quantization.scheme == "none" and cache is None:
        return None
    return "".join([f"{plan.pipeline.dtype} {quantization!r}", *_cached(plan.pipeline)])


def rounding(plan: Plan, denoiser: str) -> str:
    """Equal for plans whose denoiser rounds alike, quantization apart: by what is compiled, by
    what the compiled code keeps more exactly than eager mode, and by the attention kernel."""
    component, pipeline = plan.pipeline.component(denoiser), plan.pipeline
    compilation = component.compilation
    kept = not compilation.inductor_options.get(EAGER_ROUNDING, False)
    compiled = f"{compilation.scope} {kept}" if compilation.scope != "none" else "eager"
    return f"{pipeline.dtype} {compiled} {pipeline.attention_backend}"


def picture(plan: Plan) -> str | None:
    """Equal for quantized or cached plans that make the same picture but for rounding by kernels;
    None for a plan that quantizes and caches nothing."""
    quantized = [
        f"{name} {component.quantization!r}"
        for name, component in plan.pipeline.components.items()
        if component.quantization.scheme != "none"
    ]
    lossy = [*quantized, *_cached(plan.pipeline)]
    if not lossy:
        return None
    return "|".join([plan.pipeline.dtype, str(plan.pipeline.text_tokens), *lossy])


def _cached(pipeline: PipelineOptions) -> list[str]:
    return [] if pipeline.step_cache is None else [repr(pipeline.step_cache)]


def placements(plan: Plan) -> str:
    """Equal for plans that keep each component in the same place."""
    return "|".join(
        f"{name}={placement_label(component.placement)}"
        for name, component in plan.pipeline.components.items()
        if component.placement.kind != "resident"
    )


def complexity(plan: Plan) -> int:
    """How many choices differ from the defaults; compiling a whole component counts twice. Of two
    equals the search keeps the simpler."""
    return _choices(plan.model_dump(mode="json", exclude_defaults=True))


def trial_cost(plan: Plan) -> float:
    """Expected duration of a trial relative to one with regional compilation."""
    components = plan.pipeline.components.values()
    return max(map(_compile_cost, components), default=1.0)


def _compile_cost(component: ComponentPlan) -> float:
    compilation = component.compilation
    return COMPILE_COST[compilation.scope] * _search_cost(compilation)


def _search_cost(compilation: Compilation) -> float:
    """Of what Inductor is asked to try, relative to nothing."""
    options = compilation.inductor_options
    if compilation.mode.startswith("max-autotune") or options.get("max_autotune_gemm") is True:
        return AUTOTUNE_COST
    return 1.0 if all(key in QUICK_OPTIONS for key in options) else OPTIONS_COST


def _denoiser_features(plan: Plan, component: ComponentPlan) -> frozenset[str]:
    compilation, pipeline = component.compilation, plan.pipeline
    options = sorted(f"{key}={value}" for key, value in compilation.inductor_options.items())
    chosen = {
        "scheme": component.quantization.scheme,
        "layers": _layers(component.quantization),
        "placement": placement_label(component.placement),
        "scope": compilation.scope,
        "mode": compilation.mode,
        "dynamic": compilation.dynamic,
        "fullgraph": compilation.fullgraph,
        "inductor": ",".join(options),
        "cuda_graph": compilation.cuda_graph,
        "channels_last": component.channels_last,
        "attention": pipeline.attention_backend,
        "fuse_qkv": pipeline.fuse_qkv,
        "dtype": pipeline.dtype,
        "text_tokens": pipeline.text_tokens,
        "process": repr(plan.process),
        "step_cache": pipeline.step_cache and repr(pipeline.step_cache),
    }
    return frozenset(f"{axis}={value}" for axis, value in chosen.items())


def _layers(quantization: Quantization) -> str:
    own = f" {dict(quantization.layers)}" if quantization.layers else ""
    return f"{quantization.skip} {quantization.min_features}{own}"


def _surroundings(pipeline: PipelineOptions, denoiser: str) -> Iterator[str]:
    yield f"vae.tiling={pipeline.vae.tiling}"
    yield f"vae.slicing={pipeline.vae.slicing}"
    for name, component in pipeline.components.items():
        if name != denoiser:
            yield f"{name}.scheme={component.quantization.scheme}"
            yield f"{name}.placement={placement_label(component.placement)}"
            yield f"{name}.scope={component.compilation.scope}"


def _choices(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_choices(item) for key, item in value.items() if key not in DETAILS)
    return 2 if value == "whole" else 1
