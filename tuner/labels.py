"""Short names for plans, for people: "fp8-row · regional · cudnn · resident"."""

from __future__ import annotations

from collections.abc import Iterator

from registry.inventory import ModelInventory
from registry.plan import (
    Compilation,
    ComponentPlan,
    GroupOffload,
    PipelineOptions,
    Placement,
    Plan,
    Quantization,
    Scheme,
    StepCache,
    StreamedBlocks,
    TaylorSeerCache,
)

SCHEME_LABELS: dict[Scheme, str] = {
    "none": "unquantized",
    "int8_weight_only": "int8-wo",
    "int8_dynamic": "int8-dyn",
    "float8_weight_only": "fp8-wo",
    "float8_dynamic_tensor": "fp8-tensor",
    "float8_dynamic_row": "fp8-row",
    "float8_static_tensor": "fp8-static",
    "mixed": "mixed",
}
DTYPE_LABELS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PLACEMENT_LABELS = {
    "resident": "resident",
    "model_offload": "model-offload",
    "group_offload": "group-offload",
    "sequential_offload": "sequential",
    "release_after_use": "release",
}
STANDARD_SLOTS = StreamedBlocks().slots
DENOISER_NAMES = ("transformer", "unet", "prior")
LIGHT_PATTERN = "*norm*.linear"
"""The pattern of modulation layers: a quantization that skips it is marked "light"."""


def describe(plan: Plan, inventory: ModelInventory | None = None) -> str:
    """The denoiser's choices first, then what other components do out of the ordinary:
    "fp8-row · regional · cudnn · resident; text_encoder_2 fp8-wo release".

    Without an inventory the denoiser is known by its usual name.
    """
    pipeline = plan.pipeline
    denoiser = _usual_denoiser(pipeline) if inventory is None else inventory.denoiser.name
    first = " · ".join(_denoiser(pipeline, pipeline.component(denoiser)))
    others = [
        f"{name} {words}"
        for name, choice in pipeline.components.items()
        if name != denoiser and (words := " ".join(_component(choice)))
    ]
    return "; ".join([first, *others, *_vae(pipeline)])


def _usual_denoiser(pipeline: PipelineOptions) -> str:
    named = [name for name in DENOISER_NAMES if name in pipeline.components]
    return named[0] if named else DENOISER_NAMES[0]


def _denoiser(pipeline: PipelineOptions, choice: ComponentPlan) -> Iterator[str]:
    quantization = choice.quantization
    if quantization.scheme == "none":
        yield DTYPE_LABELS[pipeline.dtype]
    else:
        yield _quantization(quantization)
    yield _compilation(choice.compilation)
    if pipeline.attention_backend != "default":
        yield pipeline.attention_backend.removeprefix("_").removeprefix("native_")
    yield _placement(choice.placement)
    if pipeline.fuse_qkv:
        yield "fused-qkv"
    if choice.channels_last:
        yield "channels-last"
    if pipeline.step_cache is not None:
        yield describe_cache(pipeline.step_cache)


def describe_cache(cache: StepCache) -> str:
    """ "cached first-block 0.12", "cached taylorseer every 4"; of a Taylor series what is not the
    default too."""
    if isinstance(cache, TaylorSeerCache):
        words = [f"cached taylorseer every {cache.interval_steps}"]
        for name, value in (("warmup_steps", "warm-up"), ("order", "order")):
            own = getattr(cache, name)
            if own != TaylorSeerCache.model_fields[name].default:
                words.append(f"{value} {own}")
        return " ".join(words)
    return f"cached first-block {cache.threshold:g}"


def _component(choice: ComponentPlan) -> Iterator[str]:
    if choice.quantization.scheme != "none":
        yield _quantization(choice.quantization)
    if choice.compilation.scope != "none":
        yield _compilation(choice.compilation)
    if choice.placement.kind != "resident":
        yield _placement(choice.placement)
    if choice.channels_last:
        yield "channels-last"


def _quantization(quantization: Quantization) -> str:
    if quantization.scheme == "mixed":
        schemes = sorted({SCHEME_LABELS[item] for item in quantization.layers.values()})
        return f"mixed {'+'.join(schemes)}"
    light = "-light" if LIGHT_PATTERN in quantization.skip else ""
    return SCHEME_LABELS[quantization.scheme] + light


def _compilation(compilation: Compilation) -> str:
    if compilation.scope == "none":
        return "eager+graph" if compilation.cuda_graph else "eager"
    words: list[str] = [compilation.scope]
    if compilation.cuda_graph:
        words.append("graph")
    if compilation.mode != "default":
        words.append(compilation.mode)
    if compilation.dynamic is not None:
        words.append("dynamic" if compilation.dynamic else "static")
    return "+".join([*words, *compilation.inductor_options])


def _placement(placement: Placement) -> str:
    if isinstance(placement, StreamedBlocks):
        slots = f"-slots-{placement.slots}" if placement.slots != STANDARD_SLOTS else ""
        return f"streamed+{placement.resident_blocks}{slots}"
    if not isinstance(placement, GroupOffload):
        return PLACEMENT_LABELS[placement.kind]
    size = f"-{placement.blocks_per_group}" if placement.blocks_per_group > 1 else ""
    return f"group-{placement.granularity}{size}" + ("-stream" if placement.stream else "")


def _vae(pipeline: PipelineOptions) -> Iterator[str]:
    if pipeline.vae.tiling:
        yield "vae tiling"
    if pipeline.vae.slicing:
        yield "vae slicing"
