from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    GroupOffload,
    LayerScheme,
    ModelOffload,
    PipelineOptions,
    Plan,
    Quantization,
    ReleaseAfterUse,
    Scheme,
    SequentialOffload,
    StreamedBlocks,
    VaeOptions,
)
from registry.workload import Shape
from tests.tuner.flux import (
    REGIONAL,
    cpu,
    denoiser,
    flux,
    gpu,
    h200,
    plan,
    quantization,
    with_component,
)
from tuner.choices import MODULATION_PATTERNS, SENSITIVE_PATTERNS
from tuner.rules import RULES, RuleBook, violations
from tuner.rules.base import is_within

STREAM = GroupOffload(granularity="leaf", stream=True)
NO_STREAM = GroupOffload(granularity="leaf", stream=False)
BLOCKS = GroupOffload(granularity="block", stream=True)
GRAPHS = Compilation(scope="regional", mode="reduce-overhead")
EAGER_REGIONAL = Compilation(scope="regional")


def broken(
    chosen: Plan, environment: Environment, inventory: ModelInventory | None = None
) -> set[str]:
    return {item.rule for item in violations(chosen, inventory or flux(), environment)}


def batch_of(size: int) -> ModelInventory:
    profile = flux().profiles[0]
    shape = Shape(height=1024, width=1024, guidance=False, batch_size=size)
    return flux().model_copy(update={"profiles": (profile.model_copy(update={"shape": shape}),)})


def masked() -> ModelInventory:
    profile = flux().profiles[0]
    activities = tuple(
        item.model_copy(update={"masked_attention": item.component == flux().denoiser.name})
        for item in profile.activities
    )
    changed = profile.model_copy(update={"activities": activities})
    return flux().model_copy(update={"profiles": (changed,)})


CACHE = FirstBlockCache(threshold=0.12)

CASES: dict[str, tuple[Plan, Environment, ModelInventory | None]] = {
    "step-cache-pipeline": (
        plan(step_cache=CACHE),
        h200(),
        flux().model_copy(update={"pipeline_class": "FluxImg2ImgPipeline"}),
    ),
    "step-cache-placement": (plan(placement=StreamedBlocks(), step_cache=CACHE), h200(), None),
    "step-cache-whole": (
        plan(compilation=Compilation(scope="whole"), step_cache=CACHE),
        h200(),
        None,
    ),
    "step-cache-graphs": (plan(compilation=GRAPHS, step_cache=CACHE), h200(), None),
    "torchao-missing": (plan("int8_weight_only"), h200(torchao=None), None),
    "float8-dynamic-capability": (plan("float8_dynamic_row"), gpu(8, 6), None),
    "float8-row-bfloat16": (plan("float8_dynamic_row", dtype="float16"), h200(), None),
    "float8-compiled-capability": (
        plan("float8_weight_only", compilation=REGIONAL),
        gpu(8, 0),
        None,
    ),
    "int8-dynamic-uncompiled": (plan("int8_dynamic", light=True), h200(), None),
    "int8-dynamic-rows": (plan("int8_dynamic", compilation=REGIONAL), h200(), None),
    "int8-dynamic-multiple": (
        plan("int8_dynamic", compilation=REGIONAL),
        h200(),
        denoiser(linears=(flux().denoiser.linears[10].model_copy(update={"out_features": 3068}),)),
    ),
    "int8-dynamic-blackwell-ultra": (
        plan("int8_dynamic", light=True, compilation=REGIONAL),
        gpu(10, 3),
        None,
    ),
    "quantizes-nothing": (plan("int8_weight_only"), h200(), denoiser(linears=())),
    "attention-backend-unreachable": (
        plan(backend="_native_cudnn"),
        h200(),
        denoiser(supports_attention_backend=False),
    ),
    "attention-backend-cuda": (plan(backend="_native_cudnn"), cpu(), None),
    "attention-backend-capability": (
        plan(backend="_native_flash", dtype="float16"),
        gpu(7, 5),
        None,
    ),
    "attention-backend-dtype": (plan(backend="_native_cudnn", dtype="float32"), h200(), None),
    "attention-backend-package": (plan(backend="sage"), h200(), None),
    "attention-backend-mask": (plan(backend="_native_flash"), h200(), masked()),
    "attention-flash-3-hopper": (plan(backend="_flash_3"), gpu(8, 9), None),
    "attention-cudnn-fp8-hopper": (plan(backend="cudnn_fp8"), gpu(10, 0), None),
    "attention-math": (plan(backend="_native_math"), h200(), None),
    "attention-efficient": (plan(backend="_native_efficient"), h200(), None),
    "attention-flash-on-cpu": (plan(backend="_native_flash"), cpu(), None),
    "compile-regional-blocks": (plan(compilation=REGIONAL), h200(), denoiser(repeated_blocks=())),
    "compile-compiler": (plan(compilation=REGIONAL), h200(triton=None), None),
    "compile-capability": (plan(compilation=REGIONAL, dtype="float16"), gpu(6, 1), None),
    "compile-graphs-offload": (plan(compilation=GRAPHS, placement=ModelOffload()), h200(), None),
    "compile-graphs-cpu": (plan(compilation=GRAPHS), cpu(), None),
    "compile-tuning-cpu": (
        plan(
            compilation=Compilation(
                scope="regional", inductor_options={"coordinate_descent_tuning": True}
            )
        ),
        cpu(),
        None,
    ),
    "compile-fullgraph-hooks": (plan(compilation=REGIONAL, placement=STREAM), h200(), None),
    "compile-quantized-model-offload": (
        plan("float8_dynamic_row", compilation=EAGER_REGIONAL, placement=ModelOffload()),
        h200(),
        None,
    ),
    "compile-quantized-group-offload": (
        plan("float8_dynamic_row", compilation=EAGER_REGIONAL, placement=NO_STREAM),
        h200(),
        None,
    ),
    "compile-sequential-offload": (
        plan(compilation=EAGER_REGIONAL, placement=SequentialOffload()),
        h200(),
        None,
    ),
    "compile-streamed-whole": (
        plan(compilation=Compilation(scope="whole"), placement=StreamedBlocks()),
        h200(),
        None,
    ),
    "offload-accelerator": (plan(placement=ModelOffload()), cpu(), None),
    "offload-accelerate-missing": (plan(placement=ModelOffload()), h200(accelerate=None), None),
    "group-stream-quantized": (plan("float8_dynamic_row", placement=STREAM), h200(), None),
    "group-without-stream": (plan(placement=NO_STREAM), h200(), None),
    "sequential-quantized": (
        plan("int8_weight_only", placement=SequentialOffload()),
        h200(),
        None,
    ),
    "group-blocks": (plan(placement=BLOCKS), h200(), denoiser(linears=())),
    "stream-blocks": (plan(placement=StreamedBlocks(resident_blocks=56)), h200(), None),
    "release-denoiser": (plan(placement=ReleaseAfterUse()), h200(), None),
    "bfloat16-capability": (plan(), gpu(7, 5), None),
    "component-unknown": (plan(others={"text_encoder_9": ComponentPlan()}), h200(), None),
    "text-tokens-length": (
        plan(text_tokens=513),
        h200(),
        flux().model_copy(update={"max_text_tokens": 512}),
    ),
    "fuse-qkv-support": (plan(fuse_qkv=True), h200(), denoiser(supports_qkv_fusion=False)),
    "fuse-qkv-joint-attention": (
        plan(fuse_qkv=True),
        h200(),
        denoiser(class_name="SD3Transformer2DModel"),
    ),
    "vae-tiling-support": (
        plan(vae=VaeOptions(tiling=True)),
        h200(),
        with_component(flux(), "vae", supports_tiling=False),
    ),
    "vae-slicing-support": (
        plan(vae=VaeOptions(slicing=True)),
        h200(),
        with_component(batch_of(2), "vae", supports_slicing=False),
    ),
    "vae-tiling-small": (plan(vae=VaeOptions(tiling=True)), h200(), None),
    "vae-slicing-single": (plan(vae=VaeOptions(slicing=True)), h200(), None),
    "channels-last-convolutions": (plan(channels_last=True), h200(), None),
}


@pytest.mark.parametrize("rule", [item.id for item in RULES])
def test_every_rule_has_a_plan_that_breaks_it(rule: str) -> None:
    chosen, environment, inventory = CASES[rule]
    assert rule in broken(chosen, environment, inventory)


def test_rules_are_told_apart_by_id() -> None:
    assert len({item.id for item in RULES}) == len(RULES) == len(CASES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_reason_is_a_sentence_and_has_a_source(rule: Any) -> None:
    assert len(rule.reason.split()) >= 6
    assert not rule.reason.endswith(".")
    assert rule.source
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.id)


ALLOWED: dict[str, tuple[Plan, Environment]] = {
    "plain": (plan(), h200()),
    "the usual recipe": (
        plan("float8_dynamic_row", compilation=REGIONAL, backend="_native_cudnn"),
        h200(),
    ),
    "int8 without modulation layers": (
        plan("int8_dynamic", light=True, compilation=REGIONAL),
        h200(),
    ),
    "float8 on Ada": (plan("float8_dynamic_tensor", compilation=REGIONAL), gpu(8, 9)),
    "float8 weights on Ampere, eager": (plan("float8_weight_only"), gpu(8, 0)),
    "int8 arithmetic on a CPU, eager": (plan("int8_dynamic"), cpu()),
    "float8 weights on a CPU": (plan("float8_weight_only", compilation=REGIONAL), cpu()),
    "streamed bf16": (plan(compilation=EAGER_REGIONAL, placement=STREAM), h200()),
    "streamed blocks": (plan(placement=BLOCKS), h200()),
    "quantized model offload, eager": (
        plan("float8_dynamic_row", placement=ModelOffload()),
        h200(),
    ),
    "a new enough package": (
        plan(backend="sage"),
        h200(attention_packages={"sageattention": "2.2.0"}),
    ),
    "FlashAttention 3 on Hopper": (
        plan(backend="_flash_3"),
        h200(attention_packages={"flash_attn_3": "3.0.0b1"}),
    ),
    "released text encoder": (
        plan(
            others={
                "text_encoder_2": ComponentPlan(
                    quantization=quantization("float8_weight_only"), placement=ReleaseAfterUse()
                )
            }
        ),
        h200(),
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_works_breaks_no_rule(name: str) -> None:
    assert broken(*ALLOWED[name]) == set()


@pytest.mark.parametrize(
    ("version", "allowed"), [("1.0.6", False), ("2.1.0", False), ("2.1.1", True), (None, False)]
)
def test_attention_packages_are_held_to_a_version(version: str | None, allowed: bool) -> None:
    packages = {"sageattention": version} if version else {}
    found = broken(plan(backend="sage"), h200(attention_packages=packages))
    assert ("attention-backend-package" not in found) is allowed


def test_a_rule_about_old_versions_lets_newer_ones_pass() -> None:
    streamed = plan("float8_dynamic_row", placement=STREAM)
    assert "group-stream-quantized" in broken(streamed, h200(diffusers="0.42.1"))
    assert "group-stream-quantized" not in broken(streamed, h200(diffusers="0.43.0"))
    assert "group-stream-quantized" in broken(streamed, h200(diffusers=None))


def test_versions_with_local_parts_and_odd_ones() -> None:
    assert is_within("2.11.0+cu130", ">=2.11")
    assert is_within("0.42.1.post1", "<0.43")
    assert not is_within("0.43.0.dev0", "<0.43")
    assert is_within("not a version", ">=2")
    assert not is_within(None, ">=2")


def test_block_groups_of_a_text_encoder_would_be_one_group() -> None:
    encoder = {"text_encoder_2": ComponentPlan(placement=BLOCKS)}
    found = violations(plan(others=encoder), flux(), h200())
    assert [(item.rule, item.component) for item in found] == [("group-blocks", "text_encoder_2")]
    assert str(found[0]).startswith("text_encoder_2: block groups are")


@pytest.mark.parametrize("compilation", [Compilation(), REGIONAL])
@pytest.mark.parametrize("scheme", ["none", "int8_weight_only", "float8_dynamic_row"])
def test_blocks_stream_quantized_and_compiled_in_one_graph(
    compilation: Compilation, scheme: Scheme
) -> None:
    chosen = plan(scheme, compilation=compilation, placement=StreamedBlocks(resident_blocks=14))
    assert broken(chosen, h200()) == set()
    assert broken(chosen, cpu()) >= {"offload-accelerator"}


def test_a_text_encoder_streams_and_a_vae_does_not() -> None:
    streamed = ComponentPlan(placement=StreamedBlocks())
    assert broken(plan(others={"text_encoder_2": streamed}), h200()) == set()
    assert broken(plan(others={"vae": streamed}), h200()) == {"stream-blocks"}


def test_a_violation_says_which_versions_it_is_about() -> None:
    (found,) = violations(plan("float8_dynamic_row", placement=STREAM), flux(), h200())
    assert found.kind == "impossible"
    assert found.versions == ("diffusers<0.43",)
    assert "diffusers#13281" in str(found)


def test_a_rule_book_answers_like_the_function() -> None:
    book = RuleBook(flux(), h200())
    every = [chosen for chosen, _, _ in CASES.values()]
    for chosen in (*every, *every):
        assert book.violations(chosen) == violations(chosen, flux(), h200())


# What the rules claim, tried on a CPU with the installed libraries.


@pytest.fixture
def tiny_flux() -> Callable[[], Any]:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

    def build() -> Any:
        torch.manual_seed(0)
        return diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(8, 12, 12),
        ).eval()

    return build


def run(model: Any) -> None:
    import torch

    with torch.no_grad():
        model(
            hidden_states=torch.randn(1, 16, 16),
            encoder_hidden_states=torch.randn(1, 8, 32),
            pooled_projections=torch.randn(1, 32),
            timestep=torch.tensor([1.0]),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(8, 3),
        )


def offload(model: Any, **options: Any) -> None:
    import torch

    host = torch.device("cpu")
    model.enable_group_offload(onload_device=host, offload_device=host, **options)


@pytest.mark.parametrize(
    ("backend", "runs"),
    [
        *(("_native_flash", True), ("_native_math", True), ("_native_cudnn", False)),
        *(("_native_efficient", False), ("sage", False), ("xformers", False)),
    ],
)
def test_attention_backends_on_a_cpu(tiny_flux: Any, backend: Any, runs: bool) -> None:
    model = tiny_flux()
    impossible = {
        item.rule
        for item in violations(plan(backend=backend), flux(), cpu())
        if item.kind == "impossible"
    }
    assert bool(impossible) is not runs
    try:
        if runs:
            model.set_attention_backend(backend)
            run(model)
        else:
            with pytest.raises(RuntimeError):
                _set_and_run(model, backend)
    finally:
        model.set_attention_backend("native")


def test_flash_attention_takes_no_mask() -> None:
    torch = pytest.importorskip("torch")
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    query, mask = torch.zeros(1, 4, 2, 8), torch.ones(4, 4, dtype=torch.bool)
    attend = functools.partial(dispatch.dispatch_attention_fn, query, query, query)
    assert attend(backend=dispatch.AttentionBackendName._NATIVE_FLASH).shape == query.shape
    with pytest.raises(ValueError, match="`attn_mask` is not supported"):
        attend(mask, backend=dispatch.AttentionBackendName._NATIVE_FLASH)


def _set_and_run(model: Any, backend: str) -> None:
    model.set_attention_backend(backend)
    run(model)


def test_group_offload_breaks_a_full_graph(tiny_flux: Any) -> None:
    torch = pytest.importorskip("torch")
    model = tiny_flux()
    offload(model, offload_type="leaf_level")
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        run(model)


def test_group_offload_cannot_stream_without_a_gpu(tiny_flux: Any) -> None:
    with pytest.raises(ValueError, match="streams"):
        offload(tiny_flux(), offload_type="leaf_level", use_stream=True)


def test_block_groups_are_the_top_levels_own_lists(tiny_flux: Any) -> None:
    torch = pytest.importorskip("torch")
    model = tiny_flux()
    offload(model, offload_type="block_level", num_blocks_per_group=1)
    assert hasattr(model.transformer_blocks[0], "_diffusers_hook")
    nested = torch.nn.Module()
    nested.encoder = torch.nn.Module()
    nested.encoder.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        nested,
        onload_device="cpu",
        offload_device="cpu",
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    assert not hasattr(nested.encoder.layers[0], "_diffusers_hook")


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "PixArtTransformer2DModel"])
def test_models_without_repeated_blocks_refuse_regional_compilation(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    assert not getattr(diffusers, name)._repeated_blocks


def test_float8_arithmetic_fails_on_a_cpu() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("a GPU of compute capability 8.9 runs it")
    from torchao.quantization import quantize_

    from tuner.pipeline.quantize import scheme_config

    model = torch.nn.Sequential(torch.nn.Linear(32, 32, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match=r"8\.9"):
        _quantize_and_run(quantize_, model, scheme_config("float8_dynamic_row"))


def _quantize_and_run(quantize: Any, model: Any, config: Any) -> None:
    import torch

    quantize(model, config)
    model(torch.randn(32, 32, dtype=torch.bfloat16))


def mixed(**layers: LayerScheme) -> Plan:
    patterns = {f"*.{name}": scheme for name, scheme in layers.items()}
    skip = (*SENSITIVE_PATTERNS, *MODULATION_PATTERNS)
    own = Quantization(scheme="mixed", layers=patterns, skip=skip)
    component = ComponentPlan(quantization=own, compilation=REGIONAL)
    return Plan(pipeline=PipelineOptions(components={"transformer": component}))


def rules_of(plan_: Plan, environment: Environment) -> set[str]:
    return {item.rule for item in RuleBook(flux(), environment).violations(plan_)}


def test_a_mixture_breaks_the_rules_of_the_schemes_it_is_made_of() -> None:
    both = mixed(to_q="float8_dynamic_row", to_k="int8_dynamic")
    assert rules_of(both, h200()) == set()
    assert "float8-dynamic-capability" in rules_of(both, gpu(8, 0))
    assert "torchao-missing" in rules_of(both, h200(torchao=None))
    assert "quantizes-nothing" in rules_of(mixed(no_such_layer="int8_dynamic"), h200())


def test_only_the_layers_that_take_int8_must_see_enough_rows() -> None:
    """Modulation layers see one row; another scheme may have them."""
    own = {"norm1.linear": "float8_weight_only", "to_q": "int8_dynamic"}
    patterns = {f"*.{name}": scheme for name, scheme in own.items()}
    other = {**patterns, "*.norm1.linear": "int8_dynamic"}
    found = []
    for layers in (patterns, other):
        quantization = Quantization.model_validate({"scheme": "mixed", "layers": layers})
        component = ComponentPlan(quantization=quantization, compilation=REGIONAL)
        plan_ = Plan(pipeline=PipelineOptions(components={"transformer": component}))
        found.append("int8-dynamic-rows" in rules_of(plan_, h200()))
    assert found == [False, True]


def test_fused_joint_attention_is_another_model_or_fails() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

    def run(dual: tuple[int, ...], *, fused: bool) -> Any:
        torch.manual_seed(0)
        model = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
        ).eval()
        if fused:
            model.fuse_qkv_projections()
        with torch.no_grad():
            return model(
                torch.randn(1, 4, 8, 8),
                encoder_hidden_states=torch.randn(1, 6, 32),
                pooled_projections=torch.randn(1, 32),
                timestep=torch.tensor([1.0]),
                return_dict=False,
            )[0]

    assert not torch.allclose(run((), fused=True), run((), fused=False), atol=1e-3)
    with pytest.raises(AttributeError):
        run((0,), fused=True)


def test_a_book_judges_a_step_cache_beside_each_choice() -> None:
    """Options of a plan are judged once; with a cache the denoiser decides too."""
    book = RuleBook(flux(), h200())
    for compilation, expected in ((EAGER_REGIONAL, ()), (GRAPHS, ("step-cache-graphs",))):
        chosen = plan(compilation=compilation, step_cache=CACHE)
        assert tuple(item.rule for item in book.violations(chosen)) == expected
        assert not book.violations(chosen.caching_steps(None))
