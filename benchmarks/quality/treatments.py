"""What is done to the pipeline before it draws, and whether that is harm."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.quality import damage
from benchmarks.quality.damage import Planting
from benchmarks.quality.pairs import OTHER_SEED
from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    LayerScheme,
    PipelineOptions,
    Plan,
    Quantization,
    TaylorSeerCache,
)
from tuner.choices import SENSITIVE_PATTERNS, TEXT_SENSITIVE_PATTERNS

Kind = Literal["noise", "fine", "coarse", "lossy", "harm", "yardstick", "cached"]
"""`noise` is bf16 by other kernels, `fine` and `coarse` what a good plan does, `lossy` more than
that, `harm` damage; `yardstick` is no treatment: another seed. `cached` leaves out steps, and no
threshold rests on it."""


def plan_of(denoiser: ComponentPlan | None = None, **options: Any) -> Plan:
    """A bf16 plan; text encoders as `text` says."""
    text: ComponentPlan | None = options.pop("text", None)
    chosen = {"transformer": denoiser, "text_encoder": text, "text_encoder_2": text}
    components = {name: item for name, item in chosen.items() if item is not None}
    return Plan(pipeline=PipelineOptions(components=components, **options))


def _scheme(scheme: LayerScheme, skip: tuple[str, ...] = SENSITIVE_PATTERNS) -> ComponentPlan:
    return ComponentPlan(quantization=Quantization(scheme=scheme, skip=skip))


def _plain(_: Any, __: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Treatment:
    """A plan applied by the tuner's own code, then `planting` around each batch."""

    kind: Kind
    plan: Plan = field(default_factory=plan_of)
    planting: Planting = _plain
    added_to_seed: int = 0


INT8_TEXT = _scheme("int8_weight_only", TEXT_SENSITIVE_PATTERNS)
COMPILED = ComponentPlan(compilation=Compilation(scope="regional"))

TREATMENTS: dict[str, Treatment] = {
    "other_seed": Treatment("yardstick", added_to_seed=OTHER_SEED),
    "math_attention": Treatment("noise", plan_of(attention_backend="_native_math")),
    "fused_qkv": Treatment("noise", plan_of(fuse_qkv=True)),
    "compiled": Treatment("noise", plan_of(COMPILED)),
    "int8_weight_only": Treatment("fine", plan_of(_scheme("int8_weight_only"))),
    "int8_text": Treatment("fine", plan_of(text=INT8_TEXT)),
    "int8_dynamic": Treatment("coarse", plan_of(_scheme("int8_dynamic"))),
    "float8_weight_only": Treatment("coarse", plan_of(_scheme("float8_weight_only"))),
    "denoiser_4_bits": Treatment("lossy", planting=damage.denoiser_at_4_bits),
    "block_3_bits": Treatment("harm", planting=damage.block_at_3_bits),
    "swapped_channels": Treatment("harm", planting=damage.swapped_channels),
    "swapped_colours": Treatment("harm", planting=damage.swapped_colours),
    "vae_overflow": Treatment("harm", planting=damage.overflowing_vae),
    "nan_step_20": Treatment("harm", planting=damage.nan_at_last_of(steps=20)),
    "scheduler_shift_1": Treatment("harm", planting=damage.scheduler_shift(1.0)),
    "scheduler_shift_3": Treatment("harm", planting=damage.scheduler_shift(3.0)),
    "text_2_bits": Treatment("harm", planting=damage.text_at_2_bits),
    **{
        f"first_block_{value:g}": Treatment(
            "cached", plan_of(step_cache=FirstBlockCache(threshold=value))
        )
        for value in (0.08, 0.12, 0.2, 0.3, 0.5)
    },
    **{
        f"taylorseer_{value}": Treatment(
            "cached", plan_of(step_cache=TaylorSeerCache(interval_steps=value))
        )
        for value in (2, 3, 4, 6, 10)
    },
}


def of_kind(*kinds: Kind) -> tuple[str, ...]:
    """Names of all treatments of these kinds."""
    return tuple(name for name, item in TREATMENTS.items() if item.kind in kinds)
