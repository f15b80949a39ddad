"""Sums over timed blocks, what is asked to be timed, and when that pays. A table stands for the
worker; the real one is in tests/tuner/pipeline/test_block_timing.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from registry.plan import Compilation, GroupOffload, Plan, Quantization
from registry.record import Failure, Measurement, PeakMemory, ShapeMeasurement, Trial
from registry.timing import Timing, TimingKey
from tests.tuner.flux import ONE_PICTURE, REGIONAL, SQUARE, flux, h200, plan, quantization
from tests.tuner.study_bench import ManualClock
from tuner.block_kinds import Bench
from tuner.block_rung import BlockRung, RungCost, rung_cost
from tuner.block_sums import BlockSums, siblings
from tuner.block_targets import block_targets, choices_among, kinds_at, layer_targets
from tuner.clock import TimeLimit
from tuner.cost_model import CostModel
from tuner.protocol import TimingTarget

ENVIRONMENT = h200()
BENCH = Bench(ENVIRONMENT, "bfloat16")
KINDS = kinds_at(flux(), SQUARE)
DOUBLE, SINGLE = KINDS
COUNTS = (19, 38)
ROW = quantization("float8_dynamic_row", light=True)
PLANS = tuple(
    plan(scheme, light=True, compilation=REGIONAL, backend=backend)
    for scheme in ("none", "float8_dynamic_row", "int8_dynamic")
    for backend in ("default", "_native_cudnn")
)
EAGER_STEP_MS = 176.7


def block_ms(key: TimingKey) -> float:
    """Times in the proportions that were measured on an H200."""
    ms = 3.4 if key.name.startswith("FluxTransformerBlock") else 1.7
    ms *= {"none": 1.0, "float8_dynamic_row": 0.75, "int8_dynamic": 0.85}[key.scheme]
    ms -= 0.3 if key.attention_backend == "_native_cudnn" else 0.0
    return ms * (1.2 if key.context == "eager" else 1.0)


def answer(key: TimingKey) -> Timing:
    if key.kind == "block":
        return Timing(key=key, outcome="measured", median_ms=block_ms(key), mad_ms=0.0, samples=7)
    ms = 1e-12 * key.shape[0] * key.shape[1] * key.shape[2]
    ms *= 1.0 if key.scheme == "none" else 0.6
    sqnr_db = None if key.scheme == "none" else 30.0
    return Timing(key=key, outcome="measured", median_ms=ms, mad_ms=0.0, samples=7, sqnr_db=sqnr_db)


class TimingsOfOneRun:
    """Kept in memory."""

    def __init__(self) -> None:
        self._timings: dict[TimingKey, Timing] = {}

    def known(self, keys: Iterable[TimingKey]) -> Mapping[TimingKey, Timing]:
        return {key: self._timings[key] for key in keys if key in self._timings}

    def keep(self, timings: Sequence[Timing]) -> None:
        self._timings |= {timing.key: timing for timing in timings}


@dataclass
class Table:
    """Answers jobs; `jobs` are the keys that each was asked for."""

    outcome: Callable[[TimingKey], Timing] = answer
    failure: Failure | None = None
    ends_after: int | None = None
    jobs: list[list[TimingKey]] = field(default_factory=list)

    def __call__(
        self, targets: Sequence[TimingTarget], limit_s: float | None
    ) -> tuple[tuple[Timing, ...], Failure | None]:
        self.jobs.append([target.key for target in targets])
        assert limit_s is None or limit_s > 0
        keys = self.jobs[-1][: self.ends_after]
        return tuple(self.outcome(key) for key in keys), self.failure


def baseline(step_ms: float = EAGER_STEP_MS, load_s: float = 30.0) -> Trial:
    shape = ShapeMeasurement(shape=SQUARE, steps=28, step_ms=step_ms, first_call_s=1.0)
    measured = Measurement(
        rung="pipeline",
        shapes=(shape,),
        memory=PeakMemory(peak_vram_bytes=1, load_peak_vram_bytes=1),
        load_s=load_s,
        start_s=8.0,
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Trial(rung="pipeline", plan=plan(), measurement=measured, started_at=now)


def sums_of(
    table: Table,
    *,
    plans: Sequence[Plan] = PLANS,
    store: TimingsOfOneRun | None = None,
    trial: Trial | None = None,
    limit_s: float | None = None,
    notes: list[str] | None = None,
) -> BlockSums | None:
    rung = BlockRung(
        flux(),
        ENVIRONMENT,
        ONE_PICTURE,
        table,
        store or TimingsOfOneRun(),
        (notes if notes is not None else []).append,
    )
    timed = rung.run(trial or baseline(), plans, TimeLimit(ManualClock(), limit_s))
    return None if timed is None else timed.sums


def all_timed() -> BlockSums:
    found = sums_of(Table())
    assert found is not None
    return found


def test_each_choice_is_timed_with_the_others_left_plain() -> None:
    table = Table()
    assert sums_of(table) is not None
    blocks, layers = table.jobs
    assert len(blocks) == len(set(blocks)) == 2 * 5
    asked = {(key.scheme, key.attention_backend, key.context) for key in blocks}
    assert asked == {
        ("none", "default", "compiled"),
        ("none", "default", "eager"),
        ("float8_dynamic_row", "default", "compiled"),
        ("int8_dynamic", "default", "compiled"),
        ("none", "_native_cudnn", "compiled"),
    }
    assert {key.kind for key in layers} == {"linear"}
    assert {key.scheme for key in layers} == {"none", "float8_dynamic_row", "int8_dynamic"}
    assert all(key.shape[0] > 1 for key in layers)  # modulation is skipped by these plans


def test_only_quantizations_that_make_blocks_faster_have_their_layers_timed() -> None:
    def slow_int8(key: TimingKey) -> Timing:
        found = answer(key)
        slow = key.kind == "block" and key.scheme == "int8_dynamic"
        return found.model_copy(update={"median_ms": 9.0}) if slow else found

    table = Table(slow_int8)
    sums_of(table)
    assert {key.scheme for key in table.jobs[1]} == {"none", "float8_dynamic_row"}


def test_a_step_is_the_sum_of_its_blocks_and_the_measured_rest() -> None:
    sums = all_timed()
    eager_ms = 19 * 3.4 * 1.2 + 38 * 1.7 * 1.2
    assert sums.rest_ms == pytest.approx(EAGER_STEP_MS - eager_ms)
    estimate = CostModel(flux(), ENVIRONMENT.hardware, blocks=sums).estimate(PLANS[2], ONE_PICTURE)
    assert PLANS[2].pipeline.component("transformer").quantization == ROW
    assert estimate.source == "blocks"
    blocks_ms = 0.75 * (19 * 3.4 + 38 * 1.7)
    assert estimate.step_ms == pytest.approx(blocks_ms + EAGER_STEP_MS - eager_ms)


def test_effects_of_scheme_and_backend_add_up() -> None:
    pair = all_timed().blocks_ms(ROW, "_native_cudnn")
    assert pair == pytest.approx(19 * (3.4 * 0.75 - 0.3) + 38 * (1.7 * 0.75 - 0.3))


def test_a_choice_of_layers_never_timed_as_a_block_is_summed_by_its_layers() -> None:
    sums = all_timed()
    mixed = Quantization(scheme="mixed", layers={"*.attn.to_q": "float8_dynamic_row"})
    gained_ms = sums.blocks_ms() - sums.blocks_ms(mixed)  # type: ignore[operator]
    at = [DOUBLE.inside(layer) for layer in DOUBLE.layers].index("attn.to_q")
    layer = DOUBLE.layers[at]
    double_ms = 0.4e-12 * DOUBLE.rows[at] * layer.weight_elements
    single_ms = 0.4e-12 * SINGLE.shape[1] * 3072 * 3072
    assert gained_ms == pytest.approx(19 * double_ms + 38 * single_ms)


def test_patterns_that_name_single_blocks_count_those_alone() -> None:
    sums = all_timed()
    one = Quantization(scheme="mixed", layers={"transformer_blocks.3.*.to_q": "int8_dynamic"})
    every = Quantization(scheme="mixed", layers={"transformer_blocks.*.to_q": "int8_dynamic"})
    plain = sums.blocks_ms() or 0.0
    gained = [plain - (sums.blocks_ms(item) or 0.0) for item in (one, every)]
    # The second pattern meets "single_transformer_blocks" no more than the first one does.
    assert gained[1] == pytest.approx(19 * gained[0])


def test_plans_compiled_otherwise_are_predicted_in_proportion() -> None:
    model = CostModel(flux(), ENVIRONMENT.hardware, blocks=all_timed())
    rooflines = CostModel(flux(), ENVIRONMENT.hardware)
    whole = plan("none", compilation=Compilation(scope="whole"))
    regional = plan("none", compilation=REGIONAL)
    found = [model.estimate(item, ONE_PICTURE) for item in (whole, regional)]
    guessed = [rooflines.estimate(item, ONE_PICTURE) for item in (whole, regional)]
    assert {item.source for item in found} == {"blocks"}
    assert found[0].step_ms / found[1].step_ms == pytest.approx(
        guessed[0].step_ms / guessed[1].step_ms
    )
    assert found[0].peak_vram_bytes == guessed[0].peak_vram_bytes


def test_a_denoiser_that_travels_is_not_predicted_by_its_blocks() -> None:
    model = CostModel(flux(), ENVIRONMENT.hardware, blocks=all_timed())
    streamed = plan("none", placement=GroupOffload())
    assert model.estimate(streamed, ONE_PICTURE).source == "roofline"
    assert siblings(streamed, "transformer", ()) == ()


def test_without_a_baseline_that_can_say_so_the_rest_is_a_rooflines() -> None:
    """FLUX has little outside its blocks."""
    disturbed = baseline().measurement
    assert disturbed is not None
    disturbed = disturbed.model_copy(update={"contaminated": "another process"})
    sums = sums_of(Table(), trial=baseline().model_copy(update={"measurement": disturbed}))
    assert sums is not None
    assert sums.rest_ms is None
    model = CostModel(flux(), ENVIRONMENT.hardware, blocks=sums)
    estimate = model.estimate(plan("none", compilation=REGIONAL), ONE_PICTURE)
    blocks_ms = sums.blocks_ms()
    assert blocks_ms is not None
    assert blocks_ms < estimate.step_ms < blocks_ms + 5


def test_what_the_registry_knows_is_not_timed_again() -> None:
    store = TimingsOfOneRun()
    first = sums_of(Table(), store=store)
    again = Table()
    assert sums_of(again, store=store) == first
    assert again.jobs == []


def test_a_failed_or_noisy_timing_is_tried_again_and_an_unsupported_one_is_not() -> None:
    def outcome(key: TimingKey) -> Timing:
        if key.scheme == "int8_dynamic":
            return Timing(key=key, outcome="failed", samples=0, message="CUDA out of memory")
        if key.scheme == "float8_dynamic_row":
            return Timing(key=key, outcome="unsupported", samples=0, message="no kernel")
        return answer(key)

    store = TimingsOfOneRun()
    sums_of(Table(outcome), store=store)
    again = Table()
    sums_of(again, store=store)
    assert {key.scheme for key in again.jobs[0]} == {"int8_dynamic"}


def test_a_job_that_ended_early_leaves_what_it_timed() -> None:
    store, notes = TimingsOfOneRun(), list[str]()
    gone = Failure(kind="crashed", message="killed by SIGKILL")
    table = Table(failure=gone, ends_after=3)
    assert sums_of(table, store=store, notes=notes) is None  # one kind alone is no sum
    assert notes == ["timing of blocks ended early: crashed: killed by SIGKILL"]
    again = Table()
    assert sums_of(again, store=store) is not None
    assert len(again.jobs[0]) == 10 - 3


@pytest.mark.parametrize(
    ("rung_s", "spared_s", "remaining_s", "pays"),
    [
        (100, 200, None, True),
        (200, 100, None, False),
        (100, 200, 1000, True),
        (100, 200, 400, False),
        (0, 0, None, False),
    ],
)
def test_it_pays_where_it_spares_more_than_it_takes(
    rung_s: float, spared_s: float, remaining_s: float | None, pays: bool
) -> None:
    assert RungCost(rung_s, spared_s).pays(remaining_s) is pays


@pytest.mark.parametrize(("reserved_s", "pays"), [(890.0, True), (910.0, False)])
def test_it_never_takes_the_time_that_a_proof_needs(reserved_s: float, pays: bool) -> None:
    assert RungCost(100, 200, reserved_s).pays(1000) is pays


def test_both_jobs_of_the_rung_share_what_it_may_take() -> None:
    clock, limits = ManualClock(), list[float]()
    table = Table()

    def slow(
        targets: Sequence[TimingTarget], limit_s: float | None
    ) -> tuple[tuple[Timing, ...], Failure | None]:
        assert limit_s is not None
        limits.append(limit_s)
        clock.elapsed_s += 300.0
        return table(targets, limit_s)

    rung = BlockRung(
        flux(),
        ENVIRONMENT,
        ONE_PICTURE,
        slow,
        TimingsOfOneRun(),
        list[str]().append,
        reserved_s=9600.0,
    )
    assert rung.run(baseline(), PLANS, TimeLimit(clock, 10_000.0)) is not None
    assert limits == [400.0, 100.0]


def test_without_time_for_a_proof_beside_it_nothing_is_timed() -> None:
    table = Table()
    rung = BlockRung(
        flux(),
        ENVIRONMENT,
        ONE_PICTURE,
        table,
        TimingsOfOneRun(),
        list[str]().append,
        reserved_s=9_990.0,
    )
    assert rung.run(baseline(), PLANS, TimeLimit(ManualClock(), 10_000.0)) is None
    assert table.jobs == []


def test_a_model_that_loads_in_no_time_is_better_tried_than_timed() -> None:
    """On a CPU a trial of a tiny model costs little more than compiling a block."""
    choices = choices_among(PLANS, "transformer")
    blocks = block_targets(KINDS, BENCH, SQUARE, choices)
    layers = layer_targets(KINDS, BENCH, SQUARE, (ROW,))
    tiny, large = baseline(step_ms=5.0, load_s=0.1), baseline()
    assert tiny.measurement is not None
    assert large.measurement is not None
    assert not rung_cost(blocks, layers, choices, tiny.measurement, "cpu").pays(None)
    assert rung_cost(blocks, layers, choices, large.measurement, "cuda").pays(None)


def test_nothing_is_timed_where_it_does_not_pay() -> None:
    table = Table()
    assert sums_of(table, limit_s=60.0) is None
    assert table.jobs == []


def test_a_space_without_compiled_plans_has_nothing_to_time() -> None:
    assert sums_of(Table(), plans=[plan("none"), plan("int8_weight_only")]) is None
