"""A plan's step cache, on a pipeline that can take it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from registry.plan import PipelineOptions, Plan, StepCache, TaylorSeerCache
from tuner.pipeline.dtypes import DTYPES
from tuner.pipeline.step_cache import cache_steps

GRAPH_MODES = ("reduce-overhead", "max-autotune")


def enable_step_cache(
    pipe: Any, options: PipelineOptions, modules: Mapping[str, nn.Module]
) -> None:
    """Lay the plan's step cache around the denoiser, if both are there."""
    if options.step_cache is not None:
        for name in cacheable(modules):
            cache_steps(pipe, modules[name], _config(options.step_cache, DTYPES[options.dtype]))


def cacheable(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Names of components that a step cache is for."""
    return tuple(name for name, module in modules.items() if hasattr(module, "enable_cache"))


def call_alone(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """One call that finds no step before it to reuse, and leaves none behind."""
    if not getattr(denoiser, "is_cache_enabled", False):
        return denoiser(*args, **kwargs)
    cached: Any = denoiser
    cached._reset_stateful_cache()
    try:
        with cached.cache_context("alone"):
            return cached(*args, **kwargs)
    finally:
        cached._reset_stateful_cache()


def step_cache_problems(plan: Plan, pipe: Any, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Why the plan's step cache cannot work on this pipeline."""
    cache = plan.pipeline.step_cache
    if cache is None:
        return
    names = cacheable(modules)
    if len(names) != 1:
        yield f"it has {len(names)} denoisers that offer a step cache, which is for just one"
        return
    yield from _pipeline_problems(pipe)
    yield from _denoiser_problems(names[0], modules[names[0]], cache)
    yield from _choice_problems(names[0], plan.pipeline)


def _pipeline_problems(pipe: Any) -> Iterator[str]:
    """diffusers keeps the calls of one step apart, with and without the prompt, by what the
    pipeline says of each (`cache_context`)."""
    code = inspect.unwrap(type(pipe).__call__).__code__
    if "cache_context" not in code.co_names or not hasattr(pipe, "check_inputs"):
        yield (
            f"{type(pipe).__name__} does not say which call of a step is which (cache_context), so"
            " a step cache cannot work; plan.caching_steps(None) is the plan without it"
        )


def _denoiser_problems(name: str, module: nn.Module, cache: StepCache) -> Iterator[str]:
    if isinstance(cache, TaylorSeerCache):
        if not isinstance(getattr(module, "proj_out", None), nn.Module):
            yield f"{name} ({type(module).__name__}) has no proj_out to extrapolate"
        return
    from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as LISTS

    lists = (found for part, found in module.named_children() if part in LISTS)
    blocks = [block for found in lists if isinstance(found, nn.ModuleList) for block in found]
    if len(blocks) < 2 or not all(map(_is_known, blocks)):
        yield f"diffusers does not know the blocks of {name} ({type(module).__name__}) to cache"


def _is_known(block: nn.Module) -> bool:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        TransformerBlockRegistry.get(type(block))
    except ValueError:
        return False
    return True


def _choice_problems(name: str, options: PipelineOptions) -> Iterator[str]:
    choice = options.component(name)
    compilation = choice.compilation
    if choice.placement.kind != "resident":
        yield f"{name} has a step cache and is placed by {choice.placement.kind}: it must stay"
    if compilation.scope == "whole":
        yield f"{name} has a step cache, which would break its whole graph: compile it by regions"
    if compilation.cuda_graph or compilation.mode in GRAPH_MODES:
        yield f"{name} has a step cache, and a CUDA graph would repeat its first decision"


def _config(cache: StepCache, dtype: torch.dtype) -> Any:
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if isinstance(cache, TaylorSeerCache):
        return TaylorSeerCacheConfig(
            cache_interval=cache.interval_steps,
            disable_cache_before_step=cache.warmup_steps,
            max_order=cache.order,
            taylor_factors_dtype=dtype,
            use_lite_mode=True,
        )
    return FirstBlockCacheConfig(threshold=cache.threshold)
