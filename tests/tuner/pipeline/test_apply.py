"""A plan on an app's own pipeline: the same as loaded under it, or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig
from torch import nn

from registry.errors import InvalidPlan, PlanConflict
from registry.plan import (
    Compilation,
    ComponentPlan,
    ModelOffload,
    Plan,
    ProcessOptions,
    Quantization,
)
from tests.tuner.pipeline.tiny import (
    CPU,
    FLUX,
    SDXL,
    difference,
    load,
    parameters,
    picture,
    plan,
    uncompiled,
)
from tuner.model_spec import ModelSpec
from tuner.pipeline import apply as engine
from tuner.pipeline import process_options
from tuner.pipeline.attention import why_no_attention
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.quantize import layer_types, quantize_layer

INT8 = ComponentPlan(quantization=Quantization(scheme="int8_weight_only"))


def types(pipe: Any) -> dict[str, dict[str, int]]:
    return {name: layer_types(module) for name, module in pipeline_modules(pipe).items()}


@pytest.mark.parametrize("spec", [FLUX, SDXL], ids=["flux", "sdxl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_apps_pipeline_equals_a_loaded_one(spec: ModelSpec, dtype: str) -> None:
    """The app's weights are bfloat16 numbers, so that both begin with the same ones."""
    chosen = uncompiled(spec, dtype=dtype)
    own = load(spec, plan(dtype=dtype))
    report = engine.apply(own, chosen, CPU)
    loaded = load(spec, chosen)
    assert report.applied == tuple(sorted(pipeline_modules(own)))
    assert report.conflicts == ()
    assert not report.budget_proved
    assert types(own) == types(loaded)
    assert torch.equal(picture(own), picture(loaded))
    assert own.vae.use_tiling
    assert own.vae.use_slicing


def test_an_apps_weights_are_cast() -> None:
    own = load(FLUX)
    engine.apply(own, plan(dtype="bfloat16"), CPU)
    assert {item.dtype for item in parameters(own).values()} == {torch.bfloat16}
    assert bool(torch.isfinite(picture(own)).all())


def test_channels_last_reaches_convolutions_and_leaves_quantized_layers() -> None:
    unet = load(SDXL, uncompiled(SDXL)).unet
    weight = unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert layer_types(unet)["Linear/Int8Tensor"] > 20


def compiled(module: nn.Module) -> None:
    module.compile()


def compiled_inside(module: nn.Module) -> None:
    module.get_submodule("transformer_blocks.0").compile()


def some_quantized(module: nn.Module) -> None:
    quantize_layer("proj_out", module.get_submodule("proj_out"), "int8_weight_only")  # type: ignore[arg-type]


def hooked(module: nn.Module) -> None:
    apply_group_offloading(module, onload_device=CPU, offload_type="leaf_level")


def moved(module: nn.Module) -> None:
    module.get_submodule("proj_out").to("meta")


def fused(module: Any) -> None:
    module.fuse_qkv_projections()


def with_lora(module: Any) -> None:
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


CONFLICTS: list[tuple[Callable[[Any], None], str]] = [
    (compiled, "is already compiled"),
    (compiled_inside, "is already compiled"),
    (some_quantized, "is already quantized"),
    (hooked, "already has offload or cache hooks"),
    (moved, "has weights on meta, not on the CPU"),
    (fused, "has its QKV projections already fused"),
    (with_lora, "carries LoRA layers"),
]


def with_scheme(scheme: Any) -> Plan:
    return plan({"transformer": ComponentPlan(quantization=Quantization(scheme=scheme))})


def with_attention(backend: Any) -> Plan:
    pipeline = with_scheme("int8_weight_only").pipeline
    changed = pipeline.model_copy(update={"attention_backend": backend})
    process = ProcessOptions(float32_matmul_precision="high")
    return Plan(process=process, pipeline=changed)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (with_attention("_native_cudnn"), "'_native_cudnn' does not run here: it needs an NVIDIA"),
        (with_attention("cudnn_fp8"), "'cudnn_fp8' does not run here: it needs an NVIDIA GPU"),
        (with_attention("sage"), "'sage' does not run here"),
        (with_attention("xformers"), "'xformers' does not run here"),
        (
            with_scheme("float8_dynamic_row"),
            "transformer cannot be quantized to float8_dynamic_row",
        ),
    ],
    ids=["cudnn", "float8 attention", "sage", "xformers", "float8"],
)
def test_a_plan_of_another_machine_changes_nothing(chosen: Plan, reason: str) -> None:
    """Each would be refused only half-way by the libraries."""
    pipe = load(FLUX)
    before = {name: (id(item), item.dtype) for name, item in parameters(pipe).items()}
    with pytest.raises(InvalidPlan, match=re.escape(reason)):
        engine.apply(pipe, chosen, CPU)
    assert {name: (id(item), item.dtype) for name, item in parameters(pipe).items()} == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_backend_whose_package_is_missing_is_refused_on_a_gpu_too() -> None:
    gpu = torch.device("cuda")
    assert "sage" in (why_no_attention("sage", gpu) or "").lower()
    assert "nvidia-cudnn-frontend" in (why_no_attention("cudnn_fp8", gpu) or "")
    assert why_no_attention("_native_flash", gpu) is None


@pytest.mark.parametrize(
    ("change", "reason"), CONFLICTS, ids=[change.__name__ for change, _ in CONFLICTS]
)
def test_what_an_app_did_before_is_a_conflict(change: Callable[[Any], None], reason: str) -> None:
    pipe = load(FLUX)
    change(pipe.transformer)
    before = {name: id(tensor) for name, tensor in parameters(pipe).items()}
    with pytest.raises(PlanConflict, match=rf"transformer {reason}") as raised:
        engine.apply(pipe, uncompiled(FLUX), CPU)
    assert "allow_partial=True" in str(raised.value)
    assert {name: id(tensor) for name, tensor in parameters(pipe).items()} == before
    report = engine.apply(pipe, uncompiled(FLUX), CPU, allow_partial=True)
    assert report.applied == ("text_encoder", "text_encoder_2", "vae")
    assert len(report.conflicts) == 1
    assert report.conflicts[0].startswith(f"transformer {reason}")
    assert "Linear/Float8Tensor" in layer_types(pipe.text_encoder_2)


def test_a_module_inside_torch_compile_is_a_conflict() -> None:
    pipe = load(FLUX)
    pipe.transformer = torch.compile(pipe.transformer)
    with pytest.raises(PlanConflict, match=r"transformer is already compiled"):
        engine.apply(pipe, plan(), CPU)


def test_a_partly_applied_pipeline_still_makes_pictures() -> None:
    pipe = load(FLUX)
    quantize_layer("proj_out", pipe.transformer.proj_out, "int8_weight_only")
    wanted = picture(pipe)
    engine.apply(pipe, uncompiled(FLUX), CPU, allow_partial=True)
    assert 0.0 < difference(picture(pipe), wanted) < 0.2


def test_a_plan_cannot_be_applied_twice() -> None:
    pipe = load(FLUX)
    engine.apply(pipe, uncompiled(FLUX), CPU)
    with pytest.raises(PlanConflict, match=r"transformer is already quantized"):
        engine.apply(pipe, uncompiled(FLUX), CPU)


def test_a_part_that_is_not_free_stops_offloading_whole() -> None:
    pipe = load(FLUX)
    compiled(pipe.vae)
    names = pipeline_modules(pipe)
    chosen = plan({name: ComponentPlan(placement=ModelOffload()) for name in names})
    device = torch.device("cuda")
    with pytest.raises(PlanConflict, match=r"model_offload is for all components"):
        engine.apply(pipe, chosen, device)
    report = engine.apply(pipe, chosen, device, allow_partial=True)
    assert report.applied == ()
    assert len(report.conflicts) == 2


REGIONAL = Compilation(scope="regional")
IMPOSSIBLE: list[tuple[ModelSpec, Plan, str]] = [
    (SDXL, plan({"transformer": INT8}), r"names transformer, which.*does not have.*unet"),
    (
        FLUX,
        plan({"text_encoder": ComponentPlan(compilation=REGIONAL)}),
        r"text_encoder \(CLIPTextModel\) names no repeated blocks",
    ),
    (FLUX, plan({"vae": ComponentPlan(compilation=REGIONAL)}), r"vae is compiled, and"),
    (SDXL, plan(attention_backend="_native_math"), r"'_native_math' reaches no attention"),
    (SDXL, plan(text_tokens=32), r"no text length to set"),
]


@pytest.mark.parametrize(("spec", "chosen", "message"), IMPOSSIBLE)
def test_plans_that_a_pipeline_cannot_take(spec: ModelSpec, chosen: Plan, message: str) -> None:
    pipe = load(spec)
    before = {name: id(tensor) for name, tensor in parameters(pipe).items()}
    with pytest.raises(InvalidPlan, match=message):
        engine.apply(pipe, chosen, CPU)
    assert {name: id(tensor) for name, tensor in parameters(pipe).items()} == before
    with pytest.raises(InvalidPlan, match=message):
        load(spec, chosen)


def test_attention_backend_and_text_length_reach_the_pipeline() -> None:
    pipe = load(FLUX, plan(attention_backend="_native_math", text_tokens=16))
    backends = {
        layer.processor._attention_backend.value
        for layer in pipe.transformer.modules()
        if hasattr(layer, "processor")
    }
    assert backends == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"
    seen: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]),
        with_kwargs=True,
    )
    picture(pipe, prompt="a", max_sequence_length=32)
    picture(pipe, prompt="a much longer prompt than that", max_sequence_length=8)
    assert set(seen) == {16}


@pytest.fixture
def default_precision() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("default_precision")
def test_settings_of_the_process_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import config

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    options = ProcessOptions(
        float32_matmul_precision="high", cudnn_benchmark=True, dynamo_recompile_limit=33, threads=1
    )
    with config.patch(recompile_limit=8):
        engine.apply(load(FLUX), Plan(process=options, pipeline=plan().pipeline), CPU)
        assert config.recompile_limit == 33
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.benchmark
    assert torch.get_num_threads() == 1


def expandable() -> Plan:
    return Plan(process=ProcessOptions(expandable_segments=True), pipeline=plan().pipeline)


@pytest.mark.parametrize(
    ("settings", "takes", "told", "conflict"),
    [
        ("", True, ["expandable_segments:True"], False),
        ("max_split_size_mb:64", True, ["max_split_size_mb:64,expandable_segments:True"], False),
        ("expandable_segments:True", True, [], False),
        ("", False, ["expandable_segments:True"], True),
    ],
    ids=["first", "beside others", "already", "not taken"],
)
def test_expandable_segments_are_set_or_said_to_conflict(
    monkeypatch: pytest.MonkeyPatch, settings: str, takes: bool, told: list[str], conflict: bool
) -> None:
    said: list[str] = []

    def snapshot() -> dict[str, Any]:
        in_force = said[-1] if said and takes else settings
        expandable = "expandable_segments:True" in in_force
        names = {"PYTORCH_CUDA_ALLOC_CONF": in_force, "expandable_segments": expandable}
        return {"allocator_settings": names}

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", snapshot)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", said.append)
    found = process_options.allocator_conflicts(expandable(), torch.device("cuda"))
    assert said == told
    assert bool(found) is conflict
    assert all("PYTORCH_CUDA_ALLOC_CONF" in item for item in found)


def test_settings_that_come_too_late_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(FLUX)
    monkeypatch.setattr(engine, "allocator_conflicts", lambda *_: ("too late",))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "set_process_options", lambda *_: pytest.fail("something was set"))
        with pytest.raises(PlanConflict, match=r"too late"):
            load(FLUX)
        with pytest.raises(PlanConflict, match=r"too late"):
            engine.apply(pipe, uncompiled(FLUX), CPU)
    report = engine.apply(pipe, uncompiled(FLUX), CPU, allow_partial=True)
    assert report.conflicts == ("too late",)
    assert "transformer" in report.applied
