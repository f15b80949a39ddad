from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from registry.environment import Environment
from registry.errors import NoPlan, NothingFits
from registry.plan import Plan
from registry.record import ArtifactRef, Estimate, PeakMemory, RecordKey, TuningRecord
from registry.records import StoredRecord
from registry.verification import Verification
from registry.workload import ModelRef, Shape, Workload
from tests.tuner.flux import cpu, flux, h200
from tests.tuner.landscape import GB, START, estimate, make_plan, measurement, quality
from tuner.candidate import Candidate, Offer
from tuner.experience import Experience
from tuner.foresight import Foresight
from tuner.matching import Request
from tuner.resolve import resolve, tune_command

MODEL = ModelRef(name="flux-dev", source="catalog")
SQUARE = Shape(height=1024, width=1024)
SMALL = Shape(height=512, width=512)
WIDE = Shape(height=1024, width=2048)
ARCHITECTURE, WEIGHTS = "a" * 64, "b" * 64
FAST = make_plan("float8_dynamic_row", "regional", "_native_cudnn")
SLOW = make_plan("int8_weight_only", "regional")
HERE = h200()


class FakeForesight:
    """Peak proportional to pixels; `refused` plans are refused; `best_plan` is the best guess."""

    def __init__(self, refused: tuple[Plan, ...] = (), best_plan: Plan | None = None) -> None:
        self._refused = refused
        self._best = best_plan
        self.asked: list[tuple[Plan, Workload]] = []
        self.requests: list[Request] = []

    def refusals(self, plan: Plan) -> tuple[str, ...]:
        return ("fails since torch 9",) if plan in self._refused else ()

    def estimate(self, plan: Plan, workload: Workload) -> Estimate:
        self.asked.append((plan, workload))
        pixels = max(shape.height * shape.width for shape in workload.shapes)
        share = pixels / (1024 * 1024)
        return estimate(100.0 * share, int(share * 8 * GB))

    def best(self, request: Request, _experience: Experience | None = None) -> Offer:
        self.requests.append(request)
        if self._best is None:
            return Offer(None, smallest_vram_bytes=30 * GB)
        return Offer(Candidate(self._best, self.estimate(self._best, request.workload)), "a note")


def ask(*shapes: Shape, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "model": MODEL,
        "workload": Workload(shapes=shapes or (SQUARE,)),
        "budget_bytes": 24 * GB,
        "architecture": ARCHITECTURE,
        "weights": WEIGHTS,
    }
    return Request(**(values | changes))


def stored(
    plan: Plan = FAST,
    step_ms: float = 100.0,
    *,
    peak_bytes: int = 10 * GB,
    shapes: tuple[Shape, ...] = (SQUARE,),
    environment: Environment = HERE,
    weights: str = WEIGHTS,
    model: ModelRef = MODEL,
    sqnr_db: float = 24.0,
    status: Any = "current",
    artifacts: tuple[ArtifactRef, ...] = (
        ArtifactRef(kind="compile_cache", sha256="c" * 64, size_bytes=1),
    ),
    host_bytes: int = 0,
    architecture: str = ARCHITECTURE,
    contaminated: str | None = None,
) -> StoredRecord:
    workload = Workload(shapes=shapes)
    found = measurement("replay", step_ms, peak_bytes=peak_bytes)
    memory = PeakMemory(
        peak_vram_bytes=peak_bytes, load_peak_vram_bytes=peak_bytes, host_peak_bytes=host_bytes
    )
    times = tuple(found.shapes[0].model_copy(update={"shape": shape}) for shape in workload.shapes)
    measured = found.model_copy(
        update={"shapes": times, "memory": memory, "contaminated": contaminated}
    )
    key = RecordKey(
        architecture=architecture,
        weights=weights,
        workload=workload.digest,
        hardware=environment.hardware.digest,
        runtime=environment.runtime.digest,
        plan=plan.digest,
    )
    record = TuningRecord(
        key=key,
        model=model,
        pipeline_class="FluxPipeline",
        workload=workload,
        environment=environment,
        plan=plan,
        budget_bytes=80 * GB,
        objective="latency",
        estimate=estimate(step_ms, peak_bytes),
        measurement=measured,
        baseline_plan=make_plan(),
        baseline=measurement("pipeline", 175.0, peak_bytes=30 * GB),
        quality=quality(sqnr_db, calibrated=model.weights == "pretrained"),
        artifacts=artifacts,
        study="0" * 32,
        created_at=START,
    )
    return StoredRecord(record=record, status=status, fetches=0, published_at=START)


def elsewhere(**hardware: Any) -> Environment:
    return HERE.model_copy(update={"hardware": HERE.hardware.model_copy(update=hardware)})


# Kinds of match


def test_all_equal_is_exact_and_its_artifacts_apply() -> None:
    foresight = FakeForesight()
    answer = resolve(ask(), [stored()], HERE, foresight)

    assert answer.match == "exact"
    assert not foresight.asked, "nothing needs predicting"
    assert answer.plan == FAST
    assert answer.measurement is not None
    assert answer.artifacts_apply
    assert not answer.retune_wanted
    assert answer.mismatches == ()


def test_a_record_of_more_shapes_is_exact_for_each() -> None:
    answer = resolve(ask(SMALL), [stored(shapes=(SQUARE, SMALL))], HERE, None)

    assert answer.match == "exact"
    assert answer.estimate is None


def test_other_weights_of_the_same_architecture() -> None:
    fine_tune = ModelRef(name="my-flux", source="local")
    request = ask(model=fine_tune, weights="d" * 64)
    answer = resolve(request, [stored()], HERE, FakeForesight())

    assert answer.match == "architecture"
    assert "flux-dev" in answer.mismatches[0]
    assert not answer.artifacts_apply
    assert any("unproved" in note for note in answer.notes)


def test_random_weights_never_prove_the_picture_of_real_ones() -> None:
    random_weights = MODEL.model_copy(update={"weights": "random"})
    answer = resolve(ask(), [stored(model=random_weights)], HERE, None)

    assert answer.match == "architecture"
    assert any("random weights" in note for note in answer.notes)


def test_without_digests_a_catalog_model_is_known_by_its_name() -> None:
    request = ask(architecture=None, weights=None)
    assert resolve(request, [stored()], HERE, None).match == "exact"
    revised = ask(
        architecture=None, weights=None, model=MODEL.model_copy(update={"revision": "v2"})
    )
    assert resolve(revised, [stored()], HERE, None).match == "architecture"


def test_a_local_folder_is_not_known_by_its_name() -> None:
    local = ModelRef(name="flux", source="local")
    request = ask(model=local, architecture=None, weights=None)

    with pytest.raises(NoPlan):
        resolve(request, [stored(model=local)], HERE, None)


def test_another_architecture_never_answers() -> None:
    other = ModelRef(name="sdxl", source="catalog")
    with pytest.raises(NoPlan):
        resolve(ask(model=other, architecture="f" * 64), [stored()], HERE, None)


def test_other_shapes_answer_with_the_peak_predicted_for_them() -> None:
    answer = resolve(ask(WIDE), [stored(peak_bytes=10 * GB)], HERE, FakeForesight())

    assert answer.match == "resolution"
    assert answer.estimate is not None
    # Predicted 8 GB at the square and 16 GB at the wide shape; measured 2 GB over the prediction.
    assert answer.estimate.peak_vram_bytes == 18 * GB
    assert "1024x1024" in answer.mismatches[0]
    assert "2048x1024" in answer.mismatches[0]


def test_other_shapes_over_the_budget_do_not_answer() -> None:
    request = ask(WIDE, budget_bytes=17 * GB)
    answer = resolve(request, [stored()], HERE, FakeForesight(best_plan=SLOW))

    assert answer.match == "estimated"
    assert any("18" in note and "left out" in note for note in answer.notes)


def test_smaller_shapes_need_no_prediction() -> None:
    assert resolve(ask(SMALL), [stored()], HERE, None).match == "resolution"
    with pytest.raises(NoPlan, match="inventory"):
        resolve(ask(WIDE), [stored()], HERE, None)


@pytest.mark.parametrize(
    ("field", "value"), [("driver", "590.1"), ("torch", "2.12.0"), ("apply_engine", 2)]
)
def test_another_runtime_is_stale(field: str, value: object) -> None:
    answer = resolve(ask(), [stored(environment=h200(**{field: value}))], HERE, None)

    assert answer.match == "stale"
    assert answer.mismatches == (
        f"{field}: {getattr(HERE.runtime, field)} here, {value} when proved",
    )
    assert not answer.artifacts_apply
    assert answer.retune_wanted


GPU_CODE = {
    "python": "3.13",
    "torch": "2.11.0+cu126",
    "torchao": "0.19.0",
    "diffusers": "0.43.0",
    "triton": "3.7.0",
    "cuda": "12.6",
    "cudnn": "9.99",
    "driver": "590.1",
}
CPU_CODE = {"torch": "2.13.0", "cpu_isa": "avx2", "compiler": "g++ 13"}


@pytest.mark.parametrize(
    ("own", "field", "value"),
    [
        *((h200(), field, value) for field, value in GPU_CODE.items()),
        *((cpu(), field, value) for field, value in CPU_CODE.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "on",
)
def test_compiled_code_is_offered_only_where_it_is_valid(
    own: Environment, field: str, value: str
) -> None:
    """A local part is a part of torch's version; a driver is one kind of compiler."""
    assert resolve(ask(), [stored(environment=own)], own, None).artifacts_apply
    runtime = own.runtime.model_copy(update={field: value})
    there = own.model_copy(update={"runtime": runtime})
    answer = resolve(ask(), [stored(environment=there)], own, None)
    assert (answer.match, answer.artifacts_apply) == ("stale", False)


@pytest.mark.parametrize("field", ["name", "compute_capability", "mig_profile", "cpu_model"])
def test_compiled_code_of_another_device_is_not_offered(field: str) -> None:
    own = cpu() if field == "cpu_model" else HERE
    values = {"compute_capability": (8, 9)}
    hardware = own.hardware.model_copy(update={field: values.get(field, "another")})
    there = own.model_copy(update={"hardware": hardware})
    with pytest.raises(NoPlan):
        resolve(ask(), [stored(environment=there)], own, None)


def test_another_attention_package_is_stale() -> None:
    there = h200(attention_packages={"flash-attn": "2.8"})
    answer = resolve(ask(), [stored(environment=there)], HERE, None)

    assert answer.mismatches == ("flash-attn: none here, 2.8 when proved",)


def test_the_same_gpu_in_another_host_is_stale() -> None:
    there = elsewhere(power_limit_w=500, host_ram_bytes=1)
    answer = resolve(ask(), [stored(environment=there)], HERE, None)

    assert answer.match == "stale"
    assert any("power_limit_w" in text for text in answer.mismatches)


@pytest.mark.parametrize(
    "there",
    [
        elsewhere(name="NVIDIA H100"),
        elsewhere(vram_bytes=1),
        elsewhere(mig_profile="1g.18gb"),
        cpu(),
    ],
)
def test_other_hardware_never_proves(there: Environment) -> None:
    with pytest.raises(NoPlan):
        resolve(ask(), [stored(environment=there)], HERE, None)


def test_several_differences_are_the_weakest_of_them_and_all_said() -> None:
    record = stored(weights="d" * 64, shapes=(WIDE,), environment=h200(driver="1"))
    answer = resolve(ask(), [record], HERE, FakeForesight())

    assert answer.match == "stale"
    assert len(answer.mismatches) == 3


# Which one wins


def test_the_fastest_within_the_budget_wins() -> None:
    records = [stored(SLOW, 140.0, peak_bytes=6 * GB), stored(FAST, 100.0, peak_bytes=16 * GB)]

    assert resolve(ask(), records, HERE, None).plan == FAST
    assert resolve(ask(budget_bytes=12 * GB), records, HERE, None).plan == SLOW


def test_a_study_for_more_memory_answers_for_less() -> None:
    answer = resolve(ask(budget_bytes=20 * GB), [stored(peak_bytes=19 * GB)], HERE, None)
    assert answer.match == "exact"


def test_a_peak_equal_to_the_budget_fits() -> None:
    assert resolve(ask(budget_bytes=10 * GB), [stored()], HERE, None).match == "exact"
    with pytest.raises(NoPlan, match="over the"):
        resolve(ask(budget_bytes=10 * GB - 1), [stored()], HERE, None)


def test_an_exact_record_comes_before_a_faster_stale_one() -> None:
    records = [stored(FAST, 50.0, environment=h200(driver="1")), stored(SLOW, 140.0)]

    assert resolve(ask(), records, HERE, None).plan == SLOW


def test_a_pinned_record_comes_before_all_others_for_its_own_question() -> None:
    old = stored(FAST, 160.0, environment=h200(driver="1")).model_copy(update={"pinned": True})
    records = [old, stored(SLOW, 140.0)]
    answer = resolve(ask(budget_bytes=80 * GB), records, HERE, None)
    assert (answer.plan, answer.match) == (FAST, "stale")
    assert any("pinned" in note for note in answer.notes)
    assert not answer.retune_wanted, "whoever holds on to it wants no other"
    for other in (
        ask(budget_bytes=24 * GB),
        ask(SMALL, budget_bytes=80 * GB),
        ask(budget_bytes=80 * GB, strict=True),
    ):
        assert resolve(other, records, HERE, FakeForesight()).plan == SLOW


def test_host_memory_has_its_own_budget() -> None:
    records = [stored(FAST, host_bytes=64 * GB), stored(SLOW, 140.0, host_bytes=8 * GB)]

    assert resolve(ask(), records, HERE, None).plan == FAST
    assert resolve(ask(host_budget_bytes=16 * GB), records, HERE, None).plan == SLOW


def test_the_policy_asked_for_is_held_to_the_scores() -> None:
    records = [stored(FAST, sqnr_db=24.0), stored(SLOW, 140.0, sqnr_db=38.0)]

    assert resolve(ask(), records, HERE, None).plan == FAST
    assert resolve(ask(policy="strict"), records, HERE, None).plan == SLOW


def test_the_reference_itself_meets_every_policy() -> None:
    reference = stored(make_plan(), 175.0, sqnr_db=1.0)
    assert resolve(ask(policy="strict"), [reference], HERE, None).plan == make_plan()


def test_what_todays_rules_refuse_is_left_out_with_a_note() -> None:
    records = [stored(FAST), stored(SLOW, 140.0)]
    answer = resolve(ask(), records, HERE, FakeForesight(refused=(FAST,)))

    assert answer.plan == SLOW
    assert any("fails since torch 9" in note for note in answer.notes)


@pytest.mark.parametrize("status", ["revoked", "superseded"])
def test_what_is_out_of_service_does_not_answer(status: str) -> None:
    with pytest.raises(NoPlan):
        resolve(ask(), [stored(status=status)], HERE, None)


def test_first_image_prefers_what_starts_soonest() -> None:
    def with_start(item: StoredRecord, warm_s: float) -> StoredRecord:
        measured = item.record.measurement.model_copy(update={"warm_first_image_s": warm_s})
        record = item.record.model_copy(update={"measurement": measured})
        return item.model_copy(update={"record": record})

    records = [with_start(stored(FAST), 30.0), with_start(stored(SLOW, 140.0), 20.0)]
    assert resolve(ask(objective="first-image"), records, HERE, None).plan == SLOW
    assert resolve(ask(), records, HERE, None).plan == FAST


@pytest.mark.parametrize("same_driver", [True, False])
def test_a_warm_start_counts_only_where_artifacts_apply(same_driver: bool) -> None:
    """FAST starts sooner warm, SLOW sooner cold; under another driver every start is cold."""
    runtime = HERE.runtime.model_copy(update={} if same_driver else {"driver": "999.1"})
    environment = HERE.model_copy(update={"runtime": runtime})

    def starting(plan: Plan, warm_s: float, cold_s: float) -> StoredRecord:
        item = stored(plan, environment=environment)
        times = {"warm_first_image_s": warm_s, "cold_first_image_s": cold_s}
        measured = item.record.measurement.model_copy(update=times)
        record = item.record.model_copy(update={"measurement": measured})
        return item.model_copy(update={"record": record})

    records = [starting(FAST, 10.0, 90.0), starting(SLOW, 20.0, 30.0)]
    answer = resolve(ask(objective="first-image"), records, HERE, None)
    assert answer.match == ("exact" if same_driver else "stale")
    assert answer.plan == (FAST if same_driver else SLOW)


# Nothing proved


def test_nothing_measured_gives_the_best_prediction_and_says_so() -> None:
    foresight = FakeForesight(best_plan=FAST)
    request = ask(host_budget_bytes=64 * GB)
    answer = resolve(request, [], HERE, foresight)

    assert foresight.requests == [request]
    assert "a note" in answer.notes
    assert answer.match == "estimated"
    assert answer.record is None
    assert answer.measurement is None
    assert answer.estimate is not None
    assert answer.retune_wanted


def test_without_an_inventory_the_command_to_run_is_named() -> None:
    request = ask(SQUARE, SMALL, model=MODEL.model_copy(update={"weights": "random"}))
    with pytest.raises(NoPlan) as caught:
        resolve(request, [], HERE, None)

    assert caught.value.exit_code == 3
    assert tune_command(request) == (
        "tuner run --model flux-dev --vram 24GB --resolution 512x512 --resolution 1024x1024"
        " --weights random"
    )
    assert tune_command(request) in str(caught.value)


@pytest.mark.parametrize(
    ("budget_bytes", "text"),
    [
        (24 * GB, "24GB"),
        (24 * 2**30, "24GiB"),
        (1_500_000_000, "1500MB"),
        (123, "123B"),
    ],
)
def test_the_command_repeats_the_budget_to_the_byte(budget_bytes: int, text: str) -> None:
    assert f"--vram {text} " in tune_command(ask(budget_bytes=budget_bytes))


def test_the_command_repeats_batches() -> None:
    batch = Shape(height=1024, width=1024, batch_size=4)
    assert "--batch-size 4" in tune_command(ask(batch))


def test_strict_is_exact_or_nothing() -> None:
    assert resolve(ask(strict=True), [stored()], HERE, None).match == "exact"
    with pytest.raises(NoPlan, match=r"stale.*driver"):
        resolve(ask(strict=True), [stored(environment=h200(driver="1"))], HERE, None)
    with pytest.raises(NoPlan):
        resolve(ask(strict=True), [], HERE, FakeForesight(best_plan=FAST))


def test_a_budget_in_which_nothing_fits_names_the_smallest() -> None:
    with pytest.raises(NothingFits, match="30") as caught:
        resolve(ask(budget_bytes=2 * GB), [], HERE, FakeForesight())
    assert caught.value.exit_code == 2


# As JSON


def test_the_answer_is_json_with_what_an_app_needs() -> None:
    body = json.loads(json.dumps(resolve(ask(), [stored()], HERE, None).to_json()))

    assert body["match"] == "exact"
    assert Plan.model_validate(body["plan"]) == FAST
    assert body["measurement"]["memory"]["peak_vram_bytes"] == 10 * GB
    assert body["record"]["id"] == stored().record.id
    assert body["record"]["speedup"] > 1
    assert "plan" not in body["record"]


def test_an_estimated_answer_is_json_without_a_measurement() -> None:
    body = resolve(ask(), [], HERE, FakeForesight(best_plan=FAST)).to_json()

    assert body["measurement"] is None
    assert body["record"] is None
    assert body["estimate"]["source"] == "roofline"


# With the real predictions


def test_a_shipped_inventory_answers_before_anything_ran() -> None:
    inventory = flux()
    request = ask(architecture=inventory.architecture, weights=None)
    answer = resolve(request, [], HERE, Foresight(inventory, HERE))

    assert answer.match == "estimated"
    assert answer.estimate is not None
    assert answer.estimate.peak_vram_bytes <= 24 * GB


def test_a_shipped_inventory_says_what_would_fit() -> None:
    inventory = flux()
    with pytest.raises(NothingFits, match="smallest"):
        resolve(ask(budget_bytes=10**7), [], HERE, Foresight(inventory, HERE))


def test_rules_of_this_machine_apply_to_stored_plans() -> None:
    old = HERE.hardware.model_copy(update={"compute_capability": (8, 0), "name": "NVIDIA A100"})
    here = HERE.model_copy(update={"hardware": old})
    foresight = Foresight(flux(), here)

    assert foresight.refusals(FAST)
    assert not foresight.refusals(make_plan())


def test_resolving_a_proved_plan_loads_nothing_heavy() -> None:
    code = (
        "import sys, tuner.resolve, tuner.foresight\n"
        "heavy = ('torch', 'diffusers', 'numpy', 'alembic', 'rich', 'tuner.space')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_record_that_others_had_a_part_in_comes_after_clean_ones() -> None:
    busy = stored(FAST, 90.0, contaminated="others held 2.0 GiB")
    clean = stored(SLOW, 100.0)
    answer = resolve(ask(), [busy, clean], HERE, None)
    assert answer.plan == SLOW
    assert not any("others" in note for note in answer.notes)


def test_it_is_answered_where_there_is_no_other_and_says_so() -> None:
    busy = stored(FAST, contaminated="others held 2.0 GiB")
    answer = resolve(ask(), [busy], HERE, None)
    assert answer.plan == FAST
    assert "the figures are not the plan's alone: others held 2.0 GiB" in answer.notes


def test_a_better_match_counts_for_more_than_clean_figures() -> None:
    busy = stored(FAST, contaminated="others held 2.0 GiB")
    tuned = stored(SLOW, weights="d" * 64)
    assert resolve(ask(), [tuned, busy], HERE, None).plan == FAST


def verified(item: StoredRecord, *problems: str) -> StoredRecord:
    found = Verification(
        record=item.record.id, study="study", verified_at=item.published_at, problems=problems
    )
    return item.model_copy(update={"verification": found})


def test_a_record_that_drifted_comes_after_those_that_did_not() -> None:
    drifted, held = verified(stored(FAST, 90.0), "slower"), verified(stored(SLOW, 100.0))
    answer = resolve(ask(), [drifted, held], HERE, None)
    assert (answer.plan, answer.retune_wanted) == (SLOW, False)
    assert not any("drifted" in note for note in answer.notes)


def test_it_is_answered_with_why_and_tuned_again_where_there_is_no_other() -> None:
    answer = resolve(ask(), [verified(stored(FAST), "slower", "larger")], HERE, None)
    assert (answer.match, answer.plan, answer.retune_wanted) == ("exact", FAST, True)
    assert any("it had drifted: slower; larger" in note for note in answer.notes)
