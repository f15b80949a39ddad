from __future__ import annotations

import pytest

from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    GroupOffload,
    PipelineOptions,
    Plan,
    Quantization,
    ReleaseAfterUse,
    SequentialOffload,
    StreamedBlocks,
    TaylorSeerCache,
    VaeOptions,
)
from tests.tuner.flux import REGIONAL, flux, h200, plan, quantization
from tuner.combine import candidates
from tuner.labels import describe

RELEASED = {
    "text_encoder_2": ComponentPlan(
        quantization=quantization("float8_weight_only"), placement=ReleaseAfterUse()
    )
}


@pytest.mark.parametrize(
    ("chosen", "label"),
    [
        (plan(), "bf16 · eager · resident"),
        (plan(dtype="float32"), "fp32 · eager · resident"),
        (
            plan(
                "float8_dynamic_row", compilation=REGIONAL, backend="_native_cudnn", others=RELEASED
            ),
            "fp8-row · regional · cudnn · resident; text_encoder_2 fp8-wo release",
        ),
        (
            plan("int8_dynamic", light=True, compilation=REGIONAL, fuse_qkv=True),
            "int8-dyn-light · regional · resident · fused-qkv",
        ),
        (
            plan(compilation=Compilation(scope="whole", mode="reduce-overhead", dynamic=True)),
            "bf16 · whole+reduce-overhead+dynamic · resident",
        ),
        (
            plan(placement=GroupOffload(granularity="block", stream=True)),
            "bf16 · eager · group-block-stream",
        ),
        (
            plan(placement=GroupOffload(granularity="block", stream=False, blocks_per_group=4)),
            "bf16 · eager · group-block-4",
        ),
        (
            plan("int8_dynamic", placement=StreamedBlocks(resident_blocks=14)),
            "int8-dyn · eager · streamed+14",
        ),
        (plan(placement=StreamedBlocks(slots=3)), "bf16 · eager · streamed+0-slots-3"),
        (plan(placement=SequentialOffload()), "bf16 · eager · sequential"),
        (plan(backend="_flash_3"), "bf16 · eager · flash_3 · resident"),
        (
            plan(step_cache=FirstBlockCache(threshold=0.12)),
            "bf16 · eager · resident · cached first-block 0.12",
        ),
        (
            plan(step_cache=TaylorSeerCache(interval_steps=4, order=2)),
            "bf16 · eager · resident · cached taylorseer every 4 order 2",
        ),
        (
            plan(vae=VaeOptions(tiling=True, slicing=True), channels_last=True),
            "bf16 · eager · resident · channels-last; vae tiling; vae slicing",
        ),
    ],
)
def test_labels(chosen: Plan, label: str) -> None:
    assert describe(chosen, flux()) == label
    assert describe(chosen) == label


def test_a_unet_is_known_by_its_name() -> None:
    choice = ComponentPlan(placement=SequentialOffload())
    chosen = Plan(pipeline=PipelineOptions(components={"text_encoder": choice, "unet": choice}))
    assert describe(chosen) == "bf16 · eager · sequential; text_encoder sequential"


def test_a_plan_that_names_nothing_is_plain() -> None:
    assert describe(Plan(pipeline=PipelineOptions(components={}))) == "bf16 · eager · resident"


def test_labels_tell_candidates_apart() -> None:
    plans = candidates(flux(), h200())
    labels = {describe(item, flux()) for item in plans}
    assert len(labels) > 0.99 * len(plans)


def test_a_mixture_is_named_by_its_schemes() -> None:
    own = Quantization.model_validate(
        {"scheme": "mixed", "layers": {"*.to_q": "float8_dynamic_row", "*.to_k": "int8_dynamic"}}
    )
    component = ComponentPlan(quantization=own, compilation=REGIONAL)
    options = PipelineOptions(components={"transformer": component})
    assert describe(Plan(pipeline=options)).startswith("mixed fp8-row+int8-dyn · regional")
