"""The sensible values of each choice for one model on one machine; `space` combines them.

Simple choices come first: among equal predictions the search tries the simpler plan.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from registry.environment import Environment
from registry.inventory import ComponentInventory, ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    CompileScope,
    Dtype,
    FirstBlockCache,
    GroupOffload,
    ModelOffload,
    Placement,
    Quantization,
    ReleaseAfterUse,
    Resident,
    Scheme,
    SequentialOffload,
    StepCache,
    StreamedBlocks,
    TaylorSeerCache,
    VaeOptions,
)
from registry.workload import Workload
from tuner.labels import LIGHT_PATTERN
from tuner.layers import LayerTable, few_row_layers, name_patterns

SCHEMES: tuple[Scheme, ...] = (
    "none",
    "float8_dynamic_row",
    "float8_static_tensor",
    "float8_dynamic_tensor",
    "int8_dynamic",
    "float8_weight_only",
    "int8_weight_only",
)
TEXT_SCHEMES: tuple[Scheme, ...] = (
    "none",
    "float8_weight_only",
    "int8_weight_only",
    "float8_dynamic_row",
)
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = (
    *("default", "_native_cudnn", "cudnn_fp8", "_native_flash", "_native_efficient"),
    *("_native_math", "flash", "flash_varlen", "_flash_3", "sage", "xformers"),
)
SENSITIVE_PATTERNS = ("*embed*", "norm_out*", "proj_out")
"""Embeddings and the last layers: few bytes, much of the picture."""
TEXT_SENSITIVE_PATTERNS = ("*embed*", "lm_head", "text_projection")
MODULATION_PATTERNS = (LIGHT_PATTERN,)
MINIMUM_FEATURES = 1024
"""Smaller layers gain nothing from quantization on a GPU."""
LARGE_SHARE = 0.05
"""A text encoder under this share of the pipeline's weights is not worth quantizing."""
TUNED_OPTIONS = {
    "coordinate_descent_check_all_directions": True,
    "coordinate_descent_tuning": True,
}
"""Inductor's search over kernel parameters, as diffusers' own guides set it."""
POINTWISE_OPTIONS = {"max_autotune_pointwise": True}
"""Some configurations of each element-wise kernel are timed and the best is kept. Measured on an
H200: 3% off a step of FLUX, and no longer a first call."""
MANY_SHAPES_RECOMPILE_LIMIT = 64
Ladder = tuple[StepCache, ...]
STEP_CACHES: tuple[Ladder, ...] = (
    tuple(FirstBlockCache(threshold=value) for value in (0.05, 0.08, 0.12, 0.2, 0.3)),
    tuple(TaylorSeerCache(interval_steps=value) for value in (2, 3, 4, 5, 6)),
)
"""Step caches of each kind from mild to bold: each computes no more steps than those before it."""
STREAM_LEAF = GroupOffload(granularity="leaf", stream=True)


@dataclass(frozen=True)
class Restriction:
    """Limits on what is considered; None leaves a choice free. `placements` are kinds ("resident",
    "group_offload", …) of the denoiser; `plain_compilation` leaves out every kind of compilation
    that departs from Inductor's defaults; `step_caches` are kinds ("first_block", …)."""

    schemes: frozenset[Scheme] | None = None
    text_schemes: frozenset[Scheme] | None = None
    attention_backends: frozenset[AttentionBackend] | None = None
    scopes: frozenset[CompileScope] | None = None
    placements: frozenset[str] | None = None
    fuse_qkv: bool | None = None
    vae_tiling: bool | None = None
    channels_last: bool | None = None
    plain_compilation: bool = False
    step_caches: frozenset[str] | None = None


def default_dtype(environment: Environment) -> Dtype:
    """bfloat16 where it is computed in hardware. Otherwise float16 on a GPU (before compute
    capability 8.0) and float32 on a CPU, which would emulate either."""
    capability = environment.hardware.compute_capability
    if environment.hardware.device == "cuda":
        return "float16" if capability is not None and capability < (8, 0) else "bfloat16"
    return "bfloat16" if "bf16" in (environment.runtime.cpu_isa or "") else "float32"


def denoiser_quantizations(
    inventory: ModelInventory,
    schemes: Container[Scheme] | None = None,
    layers: LayerTable | None = None,
) -> tuple[Quantization, ...]:
    """Each scheme, or of these alone, twice: with the modulation layers, and light, without them
    and every other layer that sees one row per picture: more bytes, but faster and closer to the
    original. `layers` remembers what was asked of this model's before."""
    denoiser, table = inventory.denoiser, layers or LayerTable()
    few = name_patterns(few_row_layers(inventory, denoiser.name))
    light = tuple(sorted({*SENSITIVE_PATTERNS, *MODULATION_PATTERNS, *few}))
    found: list[Quantization] = []
    for scheme in SCHEMES:
        if schemes is not None and scheme not in schemes:
            continue
        variants = [_quantization(denoiser, scheme, skip) for skip in (light, SENSITIVE_PATTERNS)]
        touched = [table.quantized(denoiser, item) for item in variants]
        if touched[0] == touched[1]:
            variants = variants[1:]
        found += variants
    return tuple(dict.fromkeys(found))


def text_quantization(encoder: ComponentInventory, scheme: Scheme) -> Quantization:
    """One scheme for a text encoder, embeddings and projections of pooled embeddings apart."""
    return _quantization(encoder, scheme, TEXT_SENSITIVE_PATTERNS)


def _quantization(
    component: ComponentInventory, scheme: Scheme, skip: tuple[str, ...]
) -> Quantization:
    if scheme == "none":
        return Quantization()
    return Quantization(scheme=scheme, skip=skip, min_features=minimum_features(component))


def minimum_features(component: ComponentInventory) -> int:
    """`MINIMUM_FEATURES`, or 0 for a model too small to have such layers, as in demos."""
    has_large = any(
        min(layer.in_features, layer.out_features) >= MINIMUM_FEATURES
        for layer in component.linears
    )
    return MINIMUM_FEATURES if has_large else 0


def large_text_encoders(inventory: ModelInventory) -> tuple[ComponentInventory, ...]:
    """Those that weigh enough to matter; all of them where none does."""
    total = sum(component.elements for component in inventory.components)
    encoders = inventory.text_encoders
    return tuple(item for item in encoders if item.elements >= LARGE_SHARE * total) or encoders


EAGER_ROUNDING = {"emulate_precision_casts": True}
"""A denoiser compiled whole holds the embedding of timestep and guidance, which diffusers scales by
1000 in the model's own precision: bfloat16 makes 3504 of 3500. Inductor keeps the 3500, so that the
model is given another guidance than it is in eager mode: tiny-flux scores 8 dB against its own
picture, and 46 dB with every rounding that eager mode does (torch 2.13, diffusers 0.42)."""


def compilations(inventory: ModelInventory, workload: Workload | None) -> tuple[Compilation, ...]:
    """Regional before whole; several shapes compile once with dynamic sizes."""
    dynamic = True if workload is not None and len(workload.shapes) > 1 else None
    has_blocks = bool(inventory.denoiser.repeated_blocks)
    regional = (
        Compilation(scope="regional", dynamic=dynamic, fullgraph=True),
        Compilation(
            scope="regional", dynamic=dynamic, fullgraph=True, inductor_options=POINTWISE_OPTIONS
        ),
        Compilation(
            scope="regional", dynamic=dynamic, fullgraph=True, inductor_options=TUNED_OPTIONS
        ),
        Compilation(
            scope="regional", mode="max-autotune-no-cudagraphs", dynamic=dynamic, fullgraph=True
        ),
    )
    whole = (
        Compilation(scope="whole", dynamic=dynamic, inductor_options=EAGER_ROUNDING),
        Compilation(scope="whole", mode="reduce-overhead", dynamic=dynamic),
    )
    plain = (Compilation(), *(regional if has_blocks else regional[:1]), *whole)
    quick = (Compilation(), *(regional[:2] if has_blocks else whole[:1]))
    return (*plain, *(item.model_copy(update={"cuda_graph": True}) for item in quick))


def is_tuned(compilation: Compilation) -> bool:
    """Whether it departs from Inductor's defaults: longer to compile, less often tried."""
    odd = compilation.mode != "default" or compilation.cuda_graph
    return odd or bool(compilation.inductor_options)


def offloaded_compilations(inventory: ModelInventory) -> tuple[Compilation, ...]:
    """Hooks break the graph, and the link sets the pace: the plain kind, or none."""
    if inventory.denoiser.repeated_blocks:
        return (Compilation(), Compilation(scope="regional"))
    return (Compilation(), Compilation(scope="whole", inductor_options=EAGER_ROUNDING))


def streamed_compilations(compilations: Iterable[Compilation]) -> tuple[Compilation, ...]:
    """Of those for a resident denoiser. Blocks that stream are compiled by regions, and a search
    over kernel parameters is too long for what it gains beside the link."""
    quick: tuple[dict[str, bool], ...] = ({}, POINTWISE_OPTIONS)
    return tuple(
        item
        for item in compilations
        if item.scope != "whole" and item.mode == "default" and not item.cuda_graph
        if item.inductor_options in quick
    )


def offloads() -> tuple[Placement, ...]:
    """Of the denoiser, from fast to slow. `fill` lets as many streamed blocks stay as a budget has
    room for."""
    return (
        ModelOffload(),
        StreamedBlocks(),
        STREAM_LEAF,
        GroupOffload(granularity="block", stream=True),
        GroupOffload(granularity="leaf", stream=False),
        GroupOffload(granularity="block", stream=False),
        SequentialOffload(),
    )


def text_placements(denoiser: Placement) -> tuple[Placement, ...]:
    """Beside a resident denoiser text encoders stay, are released, or stream: a released one shares
    the device with the denoiser while it runs, a streamed one hardly needs any of it."""
    if denoiser.kind == "resident":
        return (Resident(), ReleaseAfterUse(), STREAM_LEAF)
    return (ReleaseAfterUse(), denoiser)


def vae_options(inventory: ModelInventory, workload: Workload | None) -> tuple[VaeOptions, ...]:
    batches = workload is not None and any(shape.batch_size > 1 for shape in workload.shapes)
    slicing = (False, True) if batches else (False,)
    tiling = (False, True) if inventory.vae is not None else (False,)
    return tuple(VaeOptions(tiling=tile, slicing=cut) for tile in tiling for cut in slicing)
