"""Every choice needed to run a model, and nothing else.

A plan is data: it may come from a stranger's registry. Unknown keys are refused, and Inductor
options are allow-listed by name and type, because some of Inductor's own options (`cpp.cxx`)
name a program to run.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from registry.base import Frozen, FrozenMapping
from registry.digest import digest
from registry.errors import InvalidPlan

PLAN_FORMAT = 1
"""Written into every plan. A reader skips plans of a higher number."""

Dtype = Literal["bfloat16", "float16", "float32"]
LayerScheme = Literal[
    "none",
    "int8_weight_only",
    "int8_dynamic",
    "float8_weight_only",
    "float8_dynamic_tensor",
    "float8_dynamic_row",
    "float8_static_tensor",
]
Scheme = Literal[LayerScheme, "mixed"]
"""Of a component: one scheme for all its layers, or "mixed", where each layer has its own."""
AttentionBackend = Literal[
    "default",
    "_native_cudnn",
    "_native_flash",
    "_native_efficient",
    "_native_math",
    "flash",
    "flash_varlen",
    "_flash_3",
    "sage",
    "xformers",
    "cudnn_fp8",
]
CompileScope = Literal["none", "regional", "whole"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

INDUCTOR_OPTIONS: dict[str, type[bool | int | str]] = {
    "conv_1x1_as_mm": bool,
    "coordinate_descent_tuning": bool,
    "coordinate_descent_check_all_directions": bool,
    "emulate_precision_casts": bool,
    "epilogue_fusion": bool,
    "force_fuse_int_mm_with_mul": bool,
    "freezing": bool,
    "max_autotune_gemm": bool,
    "max_autotune_pointwise": bool,
    "shape_padding": bool,
    "use_mixed_mm": bool,
}
"""Inductor options a plan may set: none of them takes a path, a program or a callable."""

MAX_TEXT_TOKENS = 8192
"""Far over what any text encoder of a diffusion model takes. A plan may come from a stranger, and
padding fills memory."""
COMPONENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
LAYER_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]]{1,200}")


class ProcessOptions(Frozen):
    """What must be set before CUDA starts, so a change needs a new process.

    `threads` is torch's intra-op thread count, None the machine's default.
    """

    expandable_segments: bool = False
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    cudnn_benchmark: bool = False
    dynamo_recompile_limit: int = Field(default=8, ge=1, le=256)
    threads: int | None = Field(default=None, ge=1, le=1024)


class Quantization(Frozen):
    """One torchao scheme for the linear layers of one component, or one for each group of them.

    `skip` are fnmatch patterns of layer names left in the component's dtype; layers with a
    dimension under `min_features` are left alone too. Under "mixed" `layers` maps such patterns to
    schemes: of those that match a layer's name the one with the most plain characters decides, and
    a layer that none matches is left alone.
    """

    scheme: Scheme = "none"
    skip: tuple[str, ...] = ()
    min_features: int = Field(default=0, ge=0)
    layers: FrozenMapping[LayerScheme] = Field(default={}, validate_default=True)

    @field_validator("skip")
    @classmethod
    def _plain_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _check_pattern(pattern)
        return tuple(sorted(set(patterns)))

    @field_validator("layers")
    @classmethod
    def _schemes_by_pattern(cls, layers: dict[str, LayerScheme]) -> dict[str, LayerScheme]:
        for pattern, scheme in layers.items():
            _check_pattern(pattern)
            if scheme == "none":
                raise ValueError(
                    f"layer pattern {pattern!r} has scheme 'none': leave the pattern out"
                )
        return layers

    @model_validator(mode="after")
    def _mixed_names_its_layers(self) -> Self:
        if (self.scheme == "mixed") != bool(self.layers):
            raise ValueError("scheme 'mixed' and layers go together: one needs the other")
        return self

    @model_serializer(mode="wrap")
    def _without_no_layers(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without layers of its own reads, and is digested, as before there were any."""
        written: dict[str, Any] = write(self)
        if not written.get("layers"):
            written.pop("layers", None)
        return written

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those of `layers`, in the order in which they are asked: the most specific first."""
        return tuple(sorted(self.layers, key=lambda pattern: (-_plain(pattern), pattern)))

    @property
    def schemes(self) -> frozenset[LayerScheme]:
        """Every scheme that it asks for of some layer, "none" where it asks for nothing."""
        if self.scheme != "mixed":
            return frozenset({self.scheme})
        return frozenset(self.layers.values())

    def wanted(self, name: str) -> LayerScheme:
        """The scheme that the plan asks for a layer of this name, whatever its size."""
        if self.scheme != "mixed":
            return self.scheme
        matching = (self.layers[item] for item in self.patterns if fnmatchcase(name, item))
        return next(matching, "none")


def _plain(pattern: str) -> int:
    return sum(character not in "*?" for character in pattern)


def _check_pattern(pattern: str) -> None:
    if not LAYER_PATTERN.fullmatch(pattern):
        raise ValueError(f"layer pattern {pattern!r} is not a dotted name with * ? []")


class Resident(Frozen):
    """On the device from load to the end."""

    kind: Literal["resident"] = "resident"


class ModelOffload(Frozen):
    """On the host; the whole component moves to the device for each call and leaves after the next
    component starts (accelerate's `cpu_offload_with_hook`)."""

    kind: Literal["model_offload"] = "model_offload"


class GroupOffload(Frozen):
    """On the host; groups of layers move to the device as they are needed (diffusers).

    A stream copies the next group while this one computes and pins host memory.
    """

    kind: Literal["group_offload"] = "group_offload"
    granularity: Literal["block", "leaf"] = "leaf"
    stream: bool = True
    blocks_per_group: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _stream_moves_one_block(self) -> Self:
        if self.stream and self.blocks_per_group != 1:
            raise ValueError("a stream moves one block at a time: blocks_per_group must be 1")
        return self


class StreamedBlocks(Frozen):
    """Repeated blocks wait in page-locked host memory, quantized or not, and are copied to the
    device while the blocks before them compute; everything else of the component is resident.

    At least `resident_blocks` of the blocks stay on the device too, spread evenly between the
    streamed ones. Blocks of one class take turns in `slots` buffers there.
    """

    kind: Literal["streamed_blocks"] = "streamed_blocks"
    resident_blocks: int = Field(default=0, ge=0, le=10_000)
    slots: int = Field(default=2, ge=2, le=4)


class SequentialOffload(Frozen):
    """On the host; each leaf module moves to the device for its own call (accelerate)."""

    kind: Literal["sequential_offload"] = "sequential_offload"


class ReleaseAfterUse(Frozen):
    """On the host; on the device only during its own call. For text encoders: encode, then release.

    Weights never change, so nothing is copied back: the device copies are dropped.
    """

    kind: Literal["release_after_use"] = "release_after_use"


Placement = Annotated[
    Resident | ModelOffload | GroupOffload | StreamedBlocks | SequentialOffload | ReleaseAfterUse,
    Field(discriminator="kind"),
]


class Compilation(Frozen):
    """`regional` compiles each repeated block once; `whole` compiles the component's forward.

    `dynamic` None lets torch decide: static first, dynamic at the first new shape. `cuda_graph`
    records the component's whole forward, compiled or not, as a CUDA graph for each input layout.
    """

    scope: CompileScope = "none"
    mode: CompileMode = "default"
    dynamic: bool | None = None
    fullgraph: bool = False
    inductor_options: FrozenMapping[bool | int | str] = Field(default={}, validate_default=True)
    cuda_graph: bool = False

    @model_serializer(mode="wrap")
    def _without_no_graph(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without a graph reads, and is digested, as before there was the key."""
        written: dict[str, Any] = write(self)
        if not written.get("cuda_graph"):
            written.pop("cuda_graph", None)
        return written

    @field_validator("inductor_options")
    @classmethod
    def _allowed(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if name not in INDUCTOR_OPTIONS:
                accepted = ", ".join(sorted(INDUCTOR_OPTIONS))
                raise ValueError(
                    f"Inductor option {name!r} is not one a plan may set; accepted: {accepted}"
                )
            if type(value) is not INDUCTOR_OPTIONS[name]:
                wanted = INDUCTOR_OPTIONS[name].__name__
                raise ValueError(f"Inductor option {name!r} takes a {wanted}, not {value!r}")
        return options

    @model_validator(mode="after")
    def _mode_or_options(self) -> Self:
        if self.inductor_options and self.mode != "default":
            raise ValueError("torch.compile takes a mode or Inductor options, not both")
        if self.cuda_graph and self.mode in ("reduce-overhead", "max-autotune"):
            raise ValueError(f"mode {self.mode!r} captures CUDA graphs of its own: leave out one")
        if self.scope == "none" and self._has_options:
            raise ValueError("compilation options need a scope: regional or whole")
        return self

    @property
    def _has_options(self) -> bool:
        chosen = self.dynamic is not None or self.fullgraph or self.inductor_options
        return bool(chosen) or self.mode != "default"


class ComponentPlan(Frozen):
    """How one component is quantized, placed and compiled."""

    quantization: Quantization = Quantization()
    placement: Placement = Resident()
    compilation: Compilation = Compilation()
    channels_last: bool = False


class VaeOptions(Frozen):
    """Decode in tiles (large pictures) or one picture of a batch at a time."""

    tiling: bool = False
    slicing: bool = False


class FirstBlockCache(Frozen):
    """Of a step whose first block changes its input nearly as in the last whole step, the other
    blocks are left out: they are taken to add what they added then.

    `threshold` is the mean absolute difference of what the first block adds, relative to the last
    whole step's, up to which that is done (diffusers' `FirstBlockCacheConfig`).
    """

    kind: Literal["first_block"] = "first_block"
    threshold: float = Field(gt=0.0, le=1.0)


class TaylorSeerCache(Frozen):
    """Every `interval_steps`-th step is whole; the denoiser's output in between is extrapolated
    from the whole ones by a Taylor series of this order (diffusers' `TaylorSeerCacheConfig`, its
    lite mode). The first `warmup_steps` are whole too.
    """

    kind: Literal["taylorseer"] = "taylorseer"
    interval_steps: int = Field(ge=2, le=50)
    warmup_steps: int = Field(default=3, ge=1, le=100)
    order: int = Field(default=1, ge=0, le=3)


StepCache = Annotated[FirstBlockCache | TaylorSeerCache, Field(discriminator="kind")]


class PipelineOptions(Frozen):
    """`components` names every module of the pipeline that the plan says something about; a module
    it does not name is resident, unquantized and not compiled. `text_tokens` pads every prompt to
    one length, so that a compiled denoiser sees one shape; None leaves the pipeline's default.
    `step_cache` reuses in one denoising step what an earlier one of the request computed; None
    computes every step.
    """

    dtype: Dtype = "bfloat16"
    components: FrozenMapping[ComponentPlan]
    attention_backend: AttentionBackend = "default"
    fuse_qkv: bool = False
    vae: VaeOptions = VaeOptions()
    text_tokens: int | None = Field(default=None, ge=1, le=MAX_TEXT_TOKENS)
    step_cache: StepCache | None = None

    @model_serializer(mode="wrap")
    def _without_no_cache(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without a step cache reads, and is digested, as before there was the key."""
        written: dict[str, Any] = write(self)
        if written.get("step_cache") is None:
            written.pop("step_cache", None)
        return written

    @field_validator("components")
    @classmethod
    def _plain_names(cls, components: dict[str, ComponentPlan]) -> dict[str, ComponentPlan]:
        for name in components:
            if not COMPONENT_NAME.fullmatch(name):
                raise ValueError(f"component name {name!r} is not a lower-case identifier")
        return components

    def component(self, name: str) -> ComponentPlan:
        return self.components.get(name, ComponentPlan())

    def caching_steps(self, cache: StepCache | None) -> PipelineOptions:
        """The same with this step cache, or without any."""
        return self.model_copy(update={"step_cache": cache})


class Plan(Frozen):
    """The whole of it. Order of operations is fixed by the apply engine's version:
    load or quantize layer by layer, fuse QKV first, set attention, place, compile, then lay the
    step cache around it.
    """

    format: Literal[1] = 1
    process: ProcessOptions = ProcessOptions()
    pipeline: PipelineOptions

    @property
    def digest(self) -> str:
        return digest(self)

    def caching_steps(self, cache: StepCache | None) -> Plan:
        """The same with this step cache, or without any."""
        return self.model_copy(update={"pipeline": self.pipeline.caching_steps(cache)})


def parse_plan(data: str | bytes | dict[str, Any]) -> Plan:
    """A plan from JSON or its parsed form. Raises InvalidPlan naming each bad value."""
    try:
        if isinstance(data, str | bytes):
            return Plan.model_validate_json(data)
        return Plan.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'plan'}: {item['msg']}"
            for item in error.errors()
        )
        raise InvalidPlan(
            f"not a valid plan: {problems}", hint="docs/plan-format.md describes every key."
        ) from None
