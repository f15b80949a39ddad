"""What a step cache works with: pipelines that say which call is which, and whole blocks."""

from __future__ import annotations

from registry.plan import ComponentPlan
from tuner.rules.base import PlanSubject, Rule
from tuner.rules.compilation import GRAPH_MODES

CACHED_PIPELINES = frozenset({"FluxPipeline"})
"""Run with each kind of cache by `tests/tuner/pipeline/test_step_cache.py`."""


def _caches(subject: PlanSubject) -> bool:
    return subject.plan.pipeline.step_cache is not None


def _denoiser(subject: PlanSubject) -> ComponentPlan:
    return subject.plan.pipeline.component(subject.inventory.denoiser.name)


def _caches_unknown_pipeline(subject: PlanSubject) -> bool:
    return _caches(subject) and subject.inventory.pipeline_class not in CACHED_PIPELINES


def _caches_moving_weights(subject: PlanSubject) -> bool:
    return _caches(subject) and _denoiser(subject).placement.kind != "resident"


def _caches_one_graph(subject: PlanSubject) -> bool:
    return _caches(subject) and _denoiser(subject).compilation.scope == "whole"


def _caches_recorded_steps(subject: PlanSubject) -> bool:
    compilation = _denoiser(subject).compilation
    return _caches(subject) and (compilation.cuda_graph or compilation.mode in GRAPH_MODES)


RULES: tuple[Rule[PlanSubject], ...] = (
    Rule(
        "step-cache-pipeline",
        "impossible",
        "a step cache was not shown to work in this pipeline: it must tell diffusers which call of "
        "a step is which, and SDXL, SD3 and img2img pipelines do not",
        "diffusers models/cache_utils.py, cache_context; tests/tuner/pipeline/test_step_cache.py",
        _caches_unknown_pipeline,
        {"diffusers": "<0.43"},
    ),
    Rule(
        "step-cache-placement",
        "impossible",
        "a step cache was not shown to work with a denoiser that is moved: blocks that are left "
        "out would be copied all the same, and offloading swaps the layers its hooks lie on",
        "diffusers hooks/group_offloading.py; tests/tuner/pipeline/test_step_cache.py",
        _caches_moving_weights,
    ),
    Rule(
        "step-cache-whole",
        "impossible",
        "a step cache decides between blocks what is computed, which one graph of the whole "
        "denoiser cannot hold",
        "diffusers hooks/first_block_cache.py, torch.compiler.disable; "
        "tests/tuner/pipeline/test_step_cache.py",
        _caches_one_graph,
    ),
    Rule(
        "step-cache-graphs",
        "impossible",
        "a captured CUDA graph would repeat the step cache's first decision, or overwrite what it "
        "keeps",
        "docs.pytorch.org torch.compiler CUDAGraph Trees; tests/tuner/pipeline/test_step_cache.py",
        _caches_recorded_steps,
    ),
)
