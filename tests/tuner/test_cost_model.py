from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from registry.inventory import ModelInventory
from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    Dtype,
    FirstBlockCache,
    GroupOffload,
    ModelOffload,
    Placement,
    Plan,
    ReleaseAfterUse,
    Resident,
    Scheme,
    SequentialOffload,
    StreamedBlocks,
    VaeOptions,
)
from registry.record import Estimate
from registry.workload import Shape, Workload
from tests.tuner.flux import (
    ONE_PICTURE,
    REGIONAL,
    SQUARE,
    cpu,
    everywhere,
    flux,
    hardware,
    plan,
    quantization,
)
from tuner.activities import NoProfile, profile_for
from tuner.cost_model import Corrections, CostModel, smallest_budget
from tuner.layers import FEW_ROWS
from tuner.memory_model import PROCESS_CPU_BYTES

CUDNN: AttentionBackend = "_native_cudnn"
LEAF = GroupOffload(granularity="leaf", stream=True)
BLOCK = GroupOffload(granularity="block", stream=True)
LEAF_NO_STREAM = GroupOffload(granularity="leaf", stream=False)

MEASURED_STEP_MS: dict[str, tuple[Plan, float]] = {
    "static": (
        plan("float8_static_tensor", light=True, compilation=REGIONAL, backend=CUDNN),
        90.9,
    ),
    "static, float8 attention": (
        plan("float8_static_tensor", light=True, compilation=REGIONAL, backend="cudnn_fp8"),
        84.1,
    ),
    "light": (plan("float8_dynamic_row", light=True, compilation=REGIONAL, backend=CUDNN), 101.0),
    "row": (plan("float8_dynamic_row", compilation=REGIONAL, backend=CUDNN), 106.4),
    "tensor": (plan("float8_dynamic_tensor", compilation=REGIONAL, backend=CUDNN), 110.2),
    "row flash": (
        plan("float8_dynamic_row", compilation=REGIONAL, backend="_native_flash"),
        123.7,
    ),
    "compiled": (plan(compilation=REGIONAL, backend=CUDNN), 135.0),
    "row streamed": (
        plan(
            "float8_dynamic_row",
            compilation=REGIONAL,
            backend=CUDNN,
            placement=StreamedBlocks(),
        ),
        230.0,
    ),
    "eager": (plan(), 176.7),
    "leaf stream": (plan(placement=LEAF), 517),
    "block stream": (plan(placement=BLOCK), 522),
    "leaf stream compiled": (
        plan(compilation=Compilation(scope="regional"), placement=LEAF),
        528,
    ),
    "sequential": (plan(placement=SequentialOffload()), 2945),
    "leaf": (plan(placement=LEAF_NO_STREAM), 14203),
}
"""FLUX.1-dev at 1024², one H200, torch 2.11, torchao 0.18, from fast to slow."""


def h200_model(corrections: Corrections | None = None) -> CostModel:
    return CostModel(flux(), hardware(), corrections)


def estimate(chosen: Plan, workload: Workload = ONE_PICTURE) -> Estimate:
    return h200_model().estimate(chosen, workload)


@pytest.mark.parametrize("name", MEASURED_STEP_MS)
def test_step_times_are_near_the_measured_ones(name: str) -> None:
    chosen, measured_ms = MEASURED_STEP_MS[name]
    assert estimate(chosen).step_ms == pytest.approx(measured_ms, rel=0.10)


def test_plans_rank_as_they_were_measured() -> None:
    names = [
        "static, float8 attention",
        "static",
        "light",
        "row",
        "tensor",
        "row flash",
        "compiled",
        "eager",
        "leaf stream",
    ]
    predicted = [estimate(MEASURED_STEP_MS[name][0]).step_ms for name in names]
    assert predicted == sorted(predicted)
    assert len(set(predicted)) == len(predicted)


def test_a_plan_that_caches_steps_is_predicted_as_one_that_does_not_and_says_so() -> None:
    plain, model = plan(compilation=REGIONAL), CostModel(flux(), hardware())
    cached = plain.caching_steps(FirstBlockCache(threshold=0.12))
    expected = model.estimate(plain, ONE_PICTURE)
    found = model.estimate(cached, ONE_PICTURE)
    assert found.source == "roofline, every step computed"
    assert found.model_copy(update={"source": expected.source}) == expected


def test_latency_is_steps_and_what_is_around_them() -> None:
    model, chosen = h200_model(), plan()
    whole = model.estimate(chosen, ONE_PICTURE)
    more = model.estimate(chosen, ONE_PICTURE, steps=29)
    assert more.latency_s - whole.latency_s == pytest.approx(whole.step_ms / 1000)
    fixed_s = whole.latency_s - 28 * whole.step_ms / 1000
    assert 0.03 < fixed_s < 0.3


@pytest.mark.parametrize(
    ("placement", "allocator_gb"),
    [(LEAF, 0.6), (BLOCK, 1.9), (SequentialOffload(), 0.5)],
)
def test_offloaded_denoisers_hold_what_was_measured(
    placement: Placement, allocator_gb: float
) -> None:
    """The denoiser's own share: its allocator peak was measured without the other components."""
    small = {item.name: ComponentPlan(placement=SequentialOffload()) for item in flux().components}
    chosen = plan(placement=placement, others={**small, "transformer": ComponentPlan()})
    chosen = with_choice(chosen, "transformer", placement=placement)
    assert _phase_bytes(chosen, "denoise") / 1e9 == pytest.approx(allocator_gb, abs=0.25)


def _phase_bytes(chosen: Plan, phase: str) -> int:
    """Weights and activations of one phase (or of loading, where that is more)."""
    names = {"encode": "text_encoder_2", "denoise": "transformer", "decode": "vae"}
    profile = flux().profiles[0]
    only = tuple(item for item in profile.activities if item.component == names[phase])
    narrowed = flux().model_copy(
        update={"profiles": (profile.model_copy(update={"activities": only, "tiled_vae": None}),)}
    )
    memory = CostModel(narrowed, hardware()).breakdown(chosen, ONE_PICTURE).memory
    return memory.weight_bytes + memory.activation_bytes


def test_everything_resident_needs_all_weights_and_the_decoder() -> None:
    memory = h200_model().breakdown(plan(), ONE_PICTURE).memory
    weights = sum(item.elements for item in flux().components) * 2
    assert memory.phase == "decode"
    assert memory.weight_bytes == pytest.approx(weights, rel=0.02)
    assert memory.host_bytes == 0


def test_a_released_text_encoder_meets_a_resident_denoiser() -> None:
    """It leaves before the steps, but while it runs the denoiser is there already."""
    released = plan(others={"text_encoder_2": ComponentPlan(placement=ReleaseAfterUse())})
    resident_s, released_s = (estimate(item).latency_s for item in (plan(), released))
    assert released_s > resident_s + 0.5
    memory = h200_model().breakdown(released, ONE_PICTURE).memory
    assert memory.phase == "encode"
    assert _phase_bytes(plan(), "denoise") - _phase_bytes(released, "denoise") > 7e9


def test_a_streamed_text_encoder_hardly_needs_the_device() -> None:
    streamed = plan(others={"text_encoder_2": ComponentPlan(placement=LEAF)})
    saved = estimate(plan()).peak_vram_bytes - estimate(streamed).peak_vram_bytes
    assert saved == pytest.approx(9.52e9, rel=0.02)
    assert estimate(streamed).latency_s < estimate(plan()).latency_s + 0.5


def test_model_offload_needs_the_largest_component() -> None:
    peak = estimate(everywhere(ModelOffload())).peak_vram_bytes
    assert 23.8e9 < peak < 26.5e9


def test_an_offloaded_component_stays_until_the_next_offloaded_one() -> None:
    """With the VAE resident nothing tells the denoiser to leave before decoding."""
    alone = plan(placement=ModelOffload())
    chained = plan(
        placement=ModelOffload(), others={"vae": ComponentPlan(placement=ModelOffload())}
    )
    assert _phase_bytes(alone, "denoise") > 0
    assert estimate(alone).peak_vram_bytes > estimate(chained).peak_vram_bytes + 1e9


def test_pinned_copies_are_counted_as_the_allocator_makes_them() -> None:
    pinned = estimate(plan(placement=LEAF)).host_bytes
    pageable = estimate(plan(placement=SequentialOffload())).host_bytes
    assert pageable == pytest.approx(23.8e9, rel=0.01)
    assert 1.3 * pageable < pinned < 2 * pageable


def test_tiling_takes_the_tiled_profile() -> None:
    profile = flux().profiles[0]
    assert profile.tiled_vae is not None
    smaller = profile.tiled_vae.model_copy(update={"activation_peak_bytes": 400_000_000})
    inventory = flux().model_copy(
        update={"profiles": (profile.model_copy(update={"tiled_vae": smaller}),)}
    )
    model = CostModel(inventory, hardware())
    whole = model.estimate(plan(), ONE_PICTURE).peak_vram_bytes
    tiled = model.estimate(plan(vae=VaeOptions(tiling=True)), ONE_PICTURE).peak_vram_bytes
    assert whole - tiled > 1e9


def test_slicing_decodes_one_picture_at_a_time() -> None:
    four = Workload(shapes=(SQUARE.model_copy(update={"batch_size": 4}),))
    whole = estimate(plan(), four).peak_vram_bytes
    sliced = estimate(plan(vae=VaeOptions(slicing=True)), four).peak_vram_bytes
    assert whole - sliced > 4e9


def test_several_shapes_peak_at_the_largest_and_take_the_mean() -> None:
    small = Shape(height=512, width=512, guidance=False, weight=3.0)
    both = Workload(shapes=(small, SQUARE))
    alone = [estimate(plan(), Workload(shapes=(shape,))) for shape in (small, SQUARE)]
    found = estimate(plan(), both)
    assert found.peak_vram_bytes == max(item.peak_vram_bytes for item in alone)
    expected = (3 * alone[0].step_ms + alone[1].step_ms) / 4
    assert found.step_ms == pytest.approx(expected)


def test_a_profile_is_scaled_from_the_nearest() -> None:
    large = Shape(height=2048, width=1024, guidance=False)
    own, scaled = (profile_for(flux(), shape) for shape in (SQUARE, large))
    denoiser, bigger = (item.activity("transformer") for item in (own, scaled))
    assert denoiser is not None
    assert bigger is not None
    assert bigger.linear_flops == 2 * denoiser.linear_flops
    assert bigger.attention_flops == 4 * denoiser.attention_flops
    norm = "transformer_blocks.0.norm1.linear"
    assert bigger.linear_rows[norm] == denoiser.linear_rows[norm] == 1
    assert scaled.activity("text_encoder_2") == own.activity("text_encoder_2")


def test_an_inventory_without_profiles_says_so() -> None:
    empty = flux().model_copy(update={"profiles": ()})
    with pytest.raises(NoProfile, match="FluxPipeline"):
        CostModel(empty, hardware()).estimate(plan(), ONE_PICTURE)


def test_a_cpu_counts_everything_as_one_memory() -> None:
    environment = cpu()
    model = CostModel(flux(), environment.hardware, cpu_isa=environment.runtime.cpu_isa)
    found = model.estimate(plan(), ONE_PICTURE)
    assert found.host_bytes == PROCESS_CPU_BYTES + found.peak_vram_bytes
    assert found.peak_vram_bytes > 33e9
    plainer = CostModel(flux(), environment.hardware, cpu_isa="avx2")
    assert plainer.estimate(plan(), ONE_PICTURE).step_ms > 2 * found.step_ms


def test_a_slower_link_slows_what_is_offloaded_and_nothing_else() -> None:
    slow = CostModel(flux(), hardware(link_bandwidth_class="pcie4x8"))
    streamed, resident = plan(placement=LEAF), plan()
    assert slow.estimate(resident, ONE_PICTURE) == estimate(resident)
    factor = slow.estimate(streamed, ONE_PICTURE).step_ms / estimate(streamed).step_ms
    assert factor == pytest.approx(4, rel=0.05)


def test_smallest_budget() -> None:
    found = [estimate(everywhere(item)) for item in (Resident(), SequentialOffload())]
    assert smallest_budget(found) == found[1].peak_vram_bytes
    assert smallest_budget(()) is None


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_every_generation_gets_an_estimate(capability: tuple[int, int]) -> None:
    own = hardware(
        compute_capability=capability,
        multiprocessors=None,
        sm_clock_mhz=None,
        memory_bandwidth_bytes_per_s=None,
        link_bandwidth_class="unknown",
    )
    found = CostModel(flux(), own).estimate(plan(compilation=REGIONAL), ONE_PICTURE)
    assert 50 < found.step_ms < 50_000


def streamed(resident: int, slots: int = 2, scheme: Scheme = "float8_dynamic_row") -> Estimate:
    placement = StreamedBlocks(resident_blocks=resident, slots=slots)
    return estimate(
        plan(scheme, compilation=REGIONAL, backend=CUDNN, placement=placement, others=RELEASED)
    )


RELEASED = {"text_encoder_2": ComponentPlan(placement=StreamedBlocks())}


def test_streamed_blocks_trade_device_memory_for_the_link() -> None:
    found = [streamed(resident) for resident in range(0, 56, 5)]
    peaks = [item.peak_vram_bytes for item in found]
    times = [item.step_ms for item in found]
    hosts = [item.host_bytes for item in found]
    assert peaks == sorted(peaks)
    assert times == sorted(times, reverse=True)
    assert hosts == sorted(hosts, reverse=True)
    resident = estimate(plan("float8_dynamic_row", compilation=REGIONAL, backend=CUDNN))
    assert 1.9 < found[0].step_ms / resident.step_ms < 2.3, "2.12 was measured"
    assert found[-1].step_ms == pytest.approx(resident.step_ms, rel=0.01)


def test_streamed_host_memory_is_what_streams_and_not_rounded_up() -> None:
    """FLUX's blocks are 11.9 GB in float8, T5's 8.5 GB in bfloat16 and its embedding stays."""
    assert streamed(0).host_bytes == pytest.approx(11.87e9 + 9.2e9, rel=0.02)


def test_a_slot_more_takes_a_block_of_each_class_more() -> None:
    more = streamed(0, slots=3).peak_vram_bytes - streamed(0).peak_vram_bytes
    assert more == pytest.approx(0.48e9, rel=0.05)


SCHEMES: tuple[Scheme, ...] = (
    *("none", "int8_weight_only", "int8_dynamic", "float8_weight_only"),
    *("float8_dynamic_tensor", "float8_dynamic_row"),
)
PLACEMENTS: tuple[Placement, ...] = (
    Resident(),
    ModelOffload(),
    *(LEAF, LEAF_NO_STREAM, BLOCK, GroupOffload(granularity="block", stream=False)),
    SequentialOffload(),
    ReleaseAfterUse(),
    *(StreamedBlocks(), StreamedBlocks(resident_blocks=20, slots=3)),
)
COMPILATIONS = (
    Compilation(),
    REGIONAL,
    Compilation(scope="whole", mode="reduce-overhead"),
)
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")

FLUX_PIXELS_A_ROW = 16 * 16
shapes = st.builds(
    Shape,
    height=st.integers(4, 128).map(lambda value: value * 16),
    width=st.integers(4, 128).map(lambda value: value * 16),
    batch_size=st.integers(1, 8),
    guidance=st.booleans(),
)
choices = st.builds(
    ComponentPlan,
    quantization=st.builds(quantization, st.sampled_from(SCHEMES), light=st.booleans()),
    placement=st.sampled_from(PLACEMENTS),
    compilation=st.sampled_from(COMPILATIONS),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = [item.name for item in flux().components]
    chosen = {name: draw(choices) for name in names}
    base = plan(
        backend=draw(st.sampled_from(["default", CUDNN, "_native_math"])),
        vae=VaeOptions(tiling=draw(st.booleans()), slicing=draw(st.booleans())),
        dtype=draw(st.sampled_from(DTYPES)),
    )
    pipeline = base.pipeline.model_copy(update={"components": chosen})
    return base.model_copy(update={"pipeline": pipeline})


def with_choice(chosen: Plan, name: str, **changes: object) -> Plan:
    components = dict(chosen.pipeline.components)
    components[name] = components[name].model_copy(update=changes)
    pipeline = chosen.pipeline.model_copy(update={"components": components})
    return chosen.model_copy(update={"pipeline": pipeline})


def values(found: Estimate) -> list[float]:
    return [
        *(found.peak_vram_bytes, found.load_peak_vram_bytes, found.host_bytes),
        *(found.step_ms, found.latency_s),
    ]


@settings(max_examples=60, deadline=None)
@given(plans(), shapes)
def test_estimates_are_finite_and_equal_when_asked_again(chosen: Plan, shape: Shape) -> None:
    workload = Workload(shapes=(shape,))
    found = estimate(chosen, workload)
    assert all(math.isfinite(value) and value >= 0 for value in values(found))
    assert found.peak_vram_bytes >= found.load_peak_vram_bytes > 0
    assert found == estimate(chosen, workload)


@settings(max_examples=60, deadline=None)
@given(plans(), shapes)
def test_a_larger_batch_never_needs_less(chosen: Plan, shape: Shape) -> None:
    """But where so few rows are that layers run at another speed, as modulation layers do."""
    assume(shape.height * shape.width // FLUX_PIXELS_A_ROW > FEW_ROWS)
    larger = shape.model_copy(update={"batch_size": shape.batch_size + 1})
    one, more = (estimate(chosen, Workload(shapes=(item,))) for item in (shape, larger))
    assert more.peak_vram_bytes >= one.peak_vram_bytes
    assert more.latency_s >= one.latency_s


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from([item.name for item in flux().components]))
def test_offloading_never_needs_more_of_the_device(chosen: Plan, name: str) -> None:
    resident = with_choice(chosen, name, placement=Resident())
    before = estimate(resident)
    for placement in PLACEMENTS:
        after = estimate(with_choice(chosen, name, placement=placement))
        assert after.peak_vram_bytes <= before.peak_vram_bytes
        assert after.host_bytes >= before.host_bytes
        assert after.latency_s >= before.latency_s


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from(SCHEMES[1:]))
def test_quantized_weights_are_never_larger(chosen: Plan, scheme: Scheme) -> None:
    sizes = []
    for item in ("none", scheme):
        own = quantization(item)
        quantized = with_choice(chosen, "transformer", quantization=own, placement=Resident())
        sizes.append(h200_model().breakdown(quantized, ONE_PICTURE).memory.weight_bytes)
    assert sizes[1] <= sizes[0]


@settings(max_examples=40, deadline=None)
@given(plans(), shapes)
def test_remembering_changes_nothing(chosen: Plan, shape: Shape) -> None:
    model, workload = h200_model(), Workload(shapes=(shape,))
    for item in MEASURED_STEP_MS.values():
        model.estimate(item[0], workload)
    assert model.estimate(chosen, workload) == estimate(chosen, workload)


def test_a_model_of_small_parts_never_holds_more_than_itself() -> None:
    tiny: ModelInventory = flux().model_copy(
        update={
            "components": tuple(
                item.model_copy(update={"largest_leaf_elements": item.elements})
                for item in flux().components
            )
        }
    )
    model = CostModel(tiny, hardware())
    streamed, resident = everywhere(LEAF), everywhere(Resident())
    assert (
        model.estimate(streamed, ONE_PICTURE).peak_vram_bytes
        <= model.estimate(resident, ONE_PICTURE).peak_vram_bytes
    )
