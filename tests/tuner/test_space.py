from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from registry.environment import Environment
from registry.inventory import ComponentInventory, LinearLayer, ModelInventory
from registry.plan import GroupOffload, Placement, Plan, Resident, StreamedBlocks
from registry.record import Estimate
from registry.workload import Shape, Workload
from tests.tuner.flux import (
    ONE_PICTURE,
    SQUARE,
    cpu,
    denoiser,
    flux,
    gpu,
    h200,
    sdxl_like,
    shipped,
    with_component,
)
from tuner.choices import SCHEMES, STEP_CACHES, default_dtype, denoiser_quantizations
from tuner.cost_model import CostModel
from tuner.labels import describe
from tuner.layers import quantized_layers
from tuner.rules import violations
from tuner.space import (
    PEAK_TOLERANCE,
    Candidate,
    Restriction,
    Survey,
    baseline_plans,
    candidates,
    survey,
)

GB = 10**9
TWO_SHAPES = Workload(shapes=(SQUARE, Shape(height=512, width=512, guidance=False)))


def look(
    budget_gb: float,
    *,
    inventory: ModelInventory | None = None,
    environment: Environment | None = None,
    workload: Workload = ONE_PICTURE,
    host_budget_bytes: int | None = None,
    restrict: Restriction | None = None,
) -> Survey:
    own, machine = inventory or flux(), environment or h200()
    model = CostModel(own, machine.hardware, cpu_isa=machine.runtime.cpu_isa)
    budget_bytes = round(budget_gb * GB)
    return survey(own, machine, workload, budget_bytes, host_budget_bytes, model, restrict)


@cache
def plain(budget_gb: float) -> Survey:
    """`look` at nothing but a budget, once."""
    return look(budget_gb)


def tiny(features: int = 128) -> ModelInventory:
    """FLUX's structure with every layer small."""

    def shrink(item: ComponentInventory) -> ComponentInventory:
        linears = tuple(
            layer.model_copy(
                update={
                    "in_features": min(layer.in_features, features),
                    "out_features": min(layer.out_features, features),
                }
            )
            for layer in item.linears
        )
        elements = sum(layer.weight_elements for layer in linears) + 1000
        return item.model_copy(
            update={"linears": linears, "elements": elements, "other_elements": 1000}
        )

    return flux().model_copy(update={"components": tuple(map(shrink, flux().components))})


@pytest.mark.parametrize(
    ("inventory", "environment"),
    [
        (shipped("sdxl"), h200()),
        (shipped("tiny-flux"), cpu()),
        (shipped("tiny-sdxl"), cpu()),
        (flux(), h200()),
        (flux(), cpu()),
        (flux(), gpu(7, 5)),
        (sdxl_like(), gpu(8, 9)),
        (tiny(), cpu()),
    ],
    ids=[
        "sdxl",
        "tiny-flux",
        "tiny-sdxl",
        "flux h200",
        "flux cpu",
        "flux turing",
        "sdxl ada",
        "tiny cpu",
    ],
)
def test_candidates_are_distinct_and_few_enough(
    inventory: ModelInventory, environment: Environment
) -> None:
    plans = candidates(inventory, environment)
    assert 10 < len(plans) < 20_000
    assert len({item.digest for item in plans}) == len(plans)
    assert plans == candidates(inventory, environment)


def test_a_large_budget_keeps_most_of_the_space_of_flux() -> None:
    found = look(80)
    assert len(found.kept) > 1000


def test_the_known_best_recipe_comes_first() -> None:
    best = plain(80).kept[0]
    assert describe(best.plan, flux()).startswith("fp8-static-light · regional · cudnn · resident")
    assert "text_encoder" not in describe(best.plan, flux())


@pytest.mark.parametrize(
    ("budget_gb", "expected"),
    [
        (26, "fp8-static-light · regional · cudnn · resident; text_encoder_2 fp8"),
        (20, "fp8-static · regional · cudnn · resident; text_encoder_2 fp8"),
        (14, "fp8-static · regional · cudnn · streamed+"),
        (8, "fp8-tensor · regional · streamed+"),
        (3, "bf16 · eager · group-leaf-stream"),
    ],
)
def test_smaller_budgets_change_what_wins(budget_gb: float, expected: str) -> None:
    found = plain(budget_gb)
    assert describe(found.kept[0].plan, flux()).startswith(expected)
    assert found.kept[0].estimate.peak_vram_bytes <= budget_gb * GB


def test_at_a_small_budget_text_encoders_stream_beside_a_quantized_denoiser() -> None:
    found = (item.plan.pipeline for item in plain(14.5).kept)
    best = next(item for item in found if item.component("transformer").placement == Resident())
    assert isinstance(best.components["text_encoder_2"].placement, GroupOffload)


def streaming(found: Survey) -> list[Candidate]:
    """Plans whose denoiser streams, from the fastest predicted."""
    return [item for item in found.kept if isinstance(denoiser_placement(item), StreamedBlocks)]


def denoiser_placement(item: Candidate) -> Placement:
    return item.plan.pipeline.component("transformer").placement


@pytest.mark.parametrize("budget_gb", [8, 12, 16])
def test_streamed_blocks_fill_the_budget_and_keep_within_it(budget_gb: float) -> None:
    best = streaming(plain(budget_gb))[0]
    placement = denoiser_placement(best)
    assert isinstance(placement, StreamedBlocks)
    assert placement.resident_blocks > 0
    used = best.estimate.peak_vram_bytes / (budget_gb * GB)
    assert 0.93 < used <= 0.985


def test_a_larger_budget_streams_less_and_is_no_slower() -> None:
    best = [streaming(plain(gb))[0] for gb in (8, 12, 16)]
    times = [item.estimate.step_ms for item in best]
    hosts = [item.estimate.host_bytes for item in best]
    assert times == sorted(times, reverse=True)
    assert hosts == sorted(hosts, reverse=True)


def test_one_more_resident_block_would_not_fit() -> None:
    best = streaming(plain(8))[0]
    placement = denoiser_placement(best)
    assert isinstance(placement, StreamedBlocks)
    more = placement.model_copy(update={"resident_blocks": placement.resident_blocks + 1})
    own = best.plan.pipeline.component("transformer").model_copy(update={"placement": more})
    pipeline = best.plan.pipeline.model_copy(
        update={"components": {**best.plan.pipeline.components, "transformer": own}}
    )
    larger = best.plan.model_copy(update={"pipeline": pipeline})
    estimate = CostModel(flux(), h200().hardware).estimate(larger, ONE_PICTURE)
    assert estimate.peak_vram_bytes > 8 * GB * 0.98


def test_nothing_streams_on_a_cpu() -> None:
    found = candidates(flux(), cpu())
    kept = [item for item in found if not violations(item, flux(), cpu())]
    assert kept
    choices = [choice for item in kept for choice in item.pipeline.components.values()]
    assert not any(isinstance(choice.placement, StreamedBlocks) for choice in choices)


def test_every_candidate_is_kept_or_dropped_with_a_reason() -> None:
    found = plain(24)
    plans = candidates(flux(), h200(), workload=ONE_PICTURE)
    seen = Counter(item.plan for item in found.kept)
    seen.update(item.plan for item in found.dropped)
    filled = seen - Counter(plans)
    assert seen - filled == Counter(plans)
    assert filled
    assert set(filled.values()) == {1}
    placements = [item.pipeline.component("transformer").placement for item in filled]
    assert all(isinstance(item, StreamedBlocks) and item.resident_blocks for item in placements)
    assert all(item.reason for item in found.dropped)
    assert {item.stage for item in found.dropped} == {"rule", "memory", "dominated"}


def test_kept_plans_break_no_rule_and_fit() -> None:
    for item in plain(24).kept[::50]:
        assert violations(item.plan, flux(), h200()) == ()
        assert item.estimate.peak_vram_bytes <= 24 * GB * PEAK_TOLERANCE


def test_ranking_is_by_latency_with_the_doubtful_last() -> None:
    found = plain(24).kept
    sure = [item for item in found if item.estimate.peak_vram_bytes <= 24 * GB]
    assert list(found[: len(sure)]) == sure
    for part in (found[: len(sure)], found[len(sure) :]):
        latencies = [item.estimate.latency_s for item in part]
        assert latencies == sorted(latencies)
    assert len(sure) < len(found)


def test_a_choice_that_never_works_appears_once() -> None:
    dropped = Counter(item.rule for item in plain(80).dropped if item.rule is not None)
    assert dropped["attention-math"] == 1
    assert dropped["attention-backend-package"] == 6
    installed = h200(attention_packages={"sageattention": "2.2.0"})
    backends = {
        item.plan.pipeline.attention_backend for item in look(80, environment=installed).kept
    }
    assert backends == {"default", "_native_cudnn", "_native_flash", "sage"}


def test_the_reason_of_a_memory_drop_names_both_sizes() -> None:
    (first, *_) = (item for item in plain(24).dropped if item.stage == "memory")
    assert "GB on the device, over the 24.0 GB given" in first.reason
    assert first.estimate is not None


def test_host_memory_has_its_own_budget() -> None:
    found = look(8, host_budget_bytes=30 * GB)
    reasons = [item.reason for item in found.dropped if item.stage == "host_memory"]
    assert reasons
    assert all("of host memory, over the 30.0 GB given" in item for item in reasons)
    assert all(item.estimate.host_bytes <= 30 * GB for item in found.kept)


def test_nothing_fits_says_the_smallest_that_would() -> None:
    found = look(0.5)
    assert found.kept == ()
    smallest = found.smallest_budget_bytes
    assert smallest is not None
    assert 1 * GB < smallest < 4 * GB
    again = look(smallest / GB)
    assert again.kept


class Scripted(CostModel):
    """Says what a test wants of each denoiser scheme and scope: seconds and gigabytes."""

    def __init__(self, script: dict[tuple[str, str], tuple[float, float]]) -> None:
        super().__init__(flux(), h200().hardware)
        self._script = script

    def estimate(self, plan: Plan, workload: Workload, steps: int | None = None) -> Estimate:
        own = plan.pipeline.component("transformer")
        latency_s, peak_gb = self._script[own.quantization.scheme, own.compilation.scope]
        peak = round(peak_gb * GB)
        known = super().estimate(plan, workload, steps)
        return known.model_copy(update={"latency_s": latency_s, "peak_vram_bytes": peak})


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ({"eager": (3.0, 30.0), "compiled": (1.9, 30.0), "int8": (0.5, 20.0)}, {1.9, 0.5}),
        ({"eager": (2.8, 30.0), "compiled": (1.9, 30.0), "int8": (0.5, 20.0)}, {2.8, 1.9, 0.5}),
        ({"eager": (3.0, 29.0), "compiled": (1.9, 30.0), "int8": (0.5, 20.0)}, {3.0, 1.9, 0.5}),
        ({"eager": (1.0, 30.0), "compiled": (0.9, 30.0), "int8": (9.0, 30.0)}, {1.0, 0.9}),
        ({"eager": (1.0, 30.0), "compiled": (0.9, 30.0), "int8": (9.0, 20.0)}, {1.0, 0.9, 9.0}),
    ],
    ids=[
        *("slower, as large", "within the margin", "slower, smaller"),
        *("less exact, slower, as large", "less exact, slower, smaller"),
    ],
)
def test_dominated_plans_lose_to_one_as_small_and_as_exact(
    script: dict[str, tuple[float, float]], kept: set[float]
) -> None:
    model = Scripted(
        {
            ("none", "none"): script["eager"],
            ("none", "regional"): script["compiled"],
            ("int8_weight_only", "none"): script["int8"],
            ("int8_weight_only", "regional"): script["int8"],
        }
    )
    wish = Restriction(
        schemes=frozenset({"none", "int8_weight_only"}),
        text_schemes=frozenset({"none"}),
        scopes=frozenset({"none", "regional"}),
        placements=frozenset({"resident"}),
    )
    found = survey(flux(), h200(), ONE_PICTURE, 80 * GB, None, model, wish)
    seen = {item.estimate.latency_s for item in found.kept if item.estimate.host_bytes == 0}
    assert seen == kept
    for item in found.dropped:
        if item.stage == "dominated":
            assert item.reason.startswith("predicted ")
            assert "no smaller than" in item.reason


def test_a_gpu_without_float8_keeps_the_other_schemes() -> None:
    found = look(80, environment=gpu(8, 6))
    schemes = {
        item.plan.pipeline.component("transformer").quantization.scheme for item in found.kept
    }
    assert schemes == {"none", "int8_weight_only", "int8_dynamic", "float8_weight_only"}


def test_a_cpu_keeps_everything_resident() -> None:
    found = look(80, environment=cpu())
    placements = {
        choice.placement.kind
        for item in found.kept
        for choice in item.plan.pipeline.components.values()
    }
    assert placements == {"resident"}
    schemes = {
        item.plan.pipeline.component("transformer").quantization.scheme for item in found.kept
    }
    assert schemes == {"none", "int8_weight_only", "int8_dynamic", "float8_weight_only"}
    assert {item.rule for item in found.dropped} >= {"offload-accelerator", "compile-graphs-cpu"}


def test_a_model_without_blocks_is_compiled_whole() -> None:
    found = look(80, inventory=denoiser(repeated_blocks=()))
    scopes = {item.plan.pipeline.component("transformer").compilation.scope for item in found.kept}
    assert scopes == {"none", "whole"}
    assert "compile-regional-blocks" in {item.rule for item in found.dropped}


def test_a_convolutional_denoiser_tries_channels_last() -> None:
    plans = candidates(sdxl_like(), h200())
    assert any(item.pipeline.component("transformer").channels_last for item in plans)
    backends = {
        item.plan.pipeline.attention_backend for item in look(80, inventory=sdxl_like()).kept
    }
    assert backends == {"default"}


def test_quantization_comes_with_and_without_modulation_layers() -> None:
    found = [item for item in denoiser_quantizations(flux()) if item.scheme != "none"]
    assert Counter(item.scheme for item in found) == dict.fromkeys(
        (scheme for scheme in SCHEMES if scheme != "none"), 2
    )
    names = [{layer.name for layer in quantized_layers(flux().denoiser, item)} for item in found]
    norm, attention = "transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn.to_q"
    assert [norm in item for item in names] == [False, True] * 6
    assert all(attention in item for item in names)
    assert not any("proj_out" in item or "x_embedder" in item for item in names)


@pytest.mark.parametrize(("features", "minimum"), [(112, 0), (1008, 0), (1024, 1024)])
def test_small_models_are_quantized_too(features: int, minimum: int) -> None:
    found = denoiser_quantizations(tiny(features))
    assert {item.min_features for item in found if item.scheme != "none"} == {minimum}
    assert all(
        quantized_layers(tiny(features).denoiser, item) for item in found if item.scheme != "none"
    )


def test_several_shapes_compile_with_dynamic_sizes() -> None:
    compiled = [
        item
        for item in candidates(flux(), h200(), workload=TWO_SHAPES)
        if item.pipeline.component("transformer").compilation.scope != "none"
    ]
    resident = [
        item for item in compiled if item.pipeline.component("transformer").placement == Resident()
    ]
    assert all(item.pipeline.component("transformer").compilation.dynamic for item in resident)
    assert {item.process.dynamo_recompile_limit for item in resident} == {64}


def test_slicing_is_tried_for_batches_only() -> None:
    batch = Workload(shapes=(SQUARE.model_copy(update={"batch_size": 2}),))
    assert not any(item.pipeline.vae.slicing for item in candidates(flux(), h200()))
    assert any(item.pipeline.vae.slicing for item in candidates(flux(), h200(), workload=batch))


def test_prompts_of_several_lengths_are_padded_to_the_longest() -> None:
    shapes = [SQUARE.model_copy(update={"text_tokens": length}) for length in (128, 512)]
    several = Workload(shapes=(shapes[0], shapes[1].model_copy(update={"width": 512})))
    assert {
        item.pipeline.text_tokens for item in candidates(flux(), h200(), workload=several)[:50]
    } == {512}


def test_a_restriction_limits_what_is_crossed() -> None:
    wish = Restriction(
        schemes=frozenset({"none"}),
        text_schemes=frozenset({"none"}),
        attention_backends=frozenset({"default"}),
        scopes=frozenset({"none", "regional"}),
        placements=frozenset({"resident"}),
        fuse_qkv=False,
        vae_tiling=False,
        channels_last=False,
    )
    plans = candidates(flux(), h200(), restrict=wish)
    assert 0 < len(plans) <= 24
    assert all(item.pipeline.attention_backend == "default" for item in plans)
    assert all(item.pipeline.component("transformer").placement == Resident() for item in plans)


def test_baselines_go_from_fast_to_small() -> None:
    found = baseline_plans(flux(), h200())
    kinds = [item.pipeline.component("transformer").placement.kind for item in found]
    assert kinds == ["resident", "model_offload", "group_offload", "sequential_offload"]
    streamed = found[2].pipeline.component("vae").placement
    assert streamed == GroupOffload(granularity="leaf", stream=True)
    model = CostModel(flux(), h200().hardware)
    peaks = [model.estimate(item, ONE_PICTURE).peak_vram_bytes for item in found]
    assert peaks == sorted(peaks, reverse=True)
    for item in found:
        assert violations(item, flux(), h200()) == ()
        assert item.pipeline.attention_backend == "default"
        choices = item.pipeline.components.values()
        assert {choice.quantization.scheme for choice in choices} == {"none"}


def test_a_cpu_has_one_baseline() -> None:
    (only,) = baseline_plans(flux(), cpu())
    assert only.pipeline.component("transformer").placement == Resident()
    assert violations(only, flux(), cpu()) == ()


@pytest.mark.parametrize(
    ("environment", "dtype"),
    [
        (h200(), "bfloat16"),
        (gpu(7, 5), "float16"),
        (cpu("avx512 avx512_bf16"), "bfloat16"),
        (cpu("avx512 amx_bf16"), "bfloat16"),
        (cpu("avx2"), "float32"),
    ],
    ids=["hopper", "turing", "zen4", "sapphire rapids", "old cpu"],
)
def test_dtype_is_the_one_computed_in_hardware(environment: Environment, dtype: str) -> None:
    assert default_dtype(environment) == dtype
    assert {item.pipeline.dtype for item in candidates(flux(), environment)[:20]} == {dtype}


def test_small_text_encoders_are_left_unquantized() -> None:
    schemes = {
        item.pipeline.component("text_encoder").quantization.scheme
        for item in candidates(flux(), h200())
    }
    assert schemes == {"none"}


def test_a_model_without_text_encoders_has_a_space() -> None:
    bare = flux().model_copy(
        update={
            "components": tuple(item for item in flux().components if item.role != "text_encoder")
        }
    )
    plans = candidates(bare, h200())
    assert len({item.digest for item in plans}) == len(plans)
    assert look(80, inventory=bare).kept


def test_odd_layers_do_not_stop_a_survey() -> None:
    odd = LinearLayer(name="odd", in_features=4096, out_features=1001, bias=False)
    inventory = with_component(flux(), "transformer", linears=(*flux().denoiser.linears, odd))
    assert look(80, inventory=inventory).kept


def test_step_caches_stand_beside_the_plans_and_are_crossed_with_none() -> None:
    found = plain(80)
    assert found.step_caches == STEP_CACHES
    plans = [*(item.plan for item in found.kept), *(item.plan for item in found.dropped)]
    assert not any(plan.pipeline.step_cache for plan in plans)
    wish = Restriction(schemes=frozenset({"none"}), step_caches=frozenset({"taylorseer"}))
    assert look(80, restrict=wish).step_caches == STEP_CACHES[1:]


def test_where_no_step_cache_works_each_kind_is_dropped_once_with_its_reason() -> None:
    other = flux().model_copy(update={"pipeline_class": "StableDiffusion3Pipeline"})
    found = look(80, inventory=other, restrict=Restriction(schemes=frozenset({"none"})))
    assert found.step_caches == ()
    caches = [item for item in found.dropped if item.plan.pipeline.step_cache]
    assert [item.rule for item in caches] == ["step-cache-pipeline"] * len(STEP_CACHES)
