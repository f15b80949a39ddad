"""Small, valid values of the vocabulary for tests of the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from registry.environment import Environment, Hardware, Runtime
from registry.inventory import ComponentInventory, LinearLayer, ModelInventory
from registry.jobs import ANY_DEVICE, JobBody, JobKey
from registry.plan import ComponentPlan, PipelineOptions, Plan, ProcessOptions
from registry.record import (
    ArtifactRef,
    Estimate,
    Measurement,
    PeakMemory,
    Quality,
    QualityScore,
    RecordKey,
    ShapeMeasurement,
    Trial,
    TuningRecord,
)
from registry.timing import Timing, TimingKey, TimingOutcome
from registry.verification import Verification
from registry.workload import ModelRef, Shape, Workload

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
GIB = 2**30
MODEL = ModelRef(name="tiny-flux", source="catalog", weights="random")
SHAPE = Shape(height=64, width=64)
WORKLOAD = Workload(shapes=(SHAPE,))
HARDWARE = Hardware(
    device="cpu", name="test CPU", vram_bytes=8 * GIB, host_ram_bytes=8 * GIB, cpu_model="x",
    cpu_cores=2,
)  # fmt: skip
RUNTIME = Runtime(
    python="3.11", torch="2.13.0", torchao="0.18.0", diffusers="0.42.1", transformers="5.23.0",
    accelerate="1.10.0", apply_engine=1,
)  # fmt: skip
ENVIRONMENT = Environment(hardware=HARDWARE, runtime=RUNTIME)
ESTIMATE = Estimate(
    peak_vram_bytes=GIB, load_peak_vram_bytes=GIB, host_bytes=GIB, step_ms=10.5, latency_s=0.5,
    source="roofline",
)  # fmt: skip


def later(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def plan(threads: int = 1) -> Plan:
    return Plan(
        process=ProcessOptions(threads=threads),
        pipeline=PipelineOptions(components={"transformer": ComponentPlan()}),
    )


def environment(torch: str = "2.13.0", name: str = "test CPU") -> Environment:
    return Environment(
        hardware=HARDWARE.model_copy(update={"name": name}),
        runtime=RUNTIME.model_copy(update={"torch": torch}),
    )


def measurement(step_ms: float = 12.25, peak_vram_bytes: int = GIB) -> Measurement:
    times = ShapeMeasurement(
        shape=SHAPE, steps=4, step_ms=step_ms, first_call_s=2.5,
        latency_samples_s=(0.5, 0.625), latency_s=0.5,
    )  # fmt: skip
    memory = PeakMemory(peak_vram_bytes=peak_vram_bytes, load_peak_vram_bytes=GIB // 2)
    return Measurement(
        rung="replay", shapes=(times,), memory=memory, load_s=1.5, start_s=0.25,
        layer_types={"transformer": {"Linear": 3}},
    )  # fmt: skip


def quality() -> Quality:
    score = QualityScore(metric="sqnr_db", value=42.5, seed=0, prompt="a cat", shape=SHAPE)
    return Quality(
        policy="balanced", passed=True, calibrated=False, worst={"sqnr_db": 42.5}, scores=(score,)
    )


def record(
    *,
    minutes: float = 0,
    study: str = "0" * 32,
    threads: int = 1,
    torch: str = "2.13.0",
    gpu: str = "test CPU",
    name: str = "tiny-flux",
    architecture: str = "a" * 64,
    weights: str = "b" * 64,
    budget_bytes: int = 2 * GIB,
    artifacts: tuple[ArtifactRef, ...] = (),
    **measured: Any,
) -> TuningRecord:
    """`minutes` after NOW; the same arguments give the same record."""
    where, what = environment(torch, gpu), plan(threads)
    key = RecordKey(
        architecture=architecture, weights=weights, workload=WORKLOAD.digest,
        hardware=where.hardware.digest, runtime=where.runtime.digest, plan=what.digest,
    )  # fmt: skip
    return TuningRecord(
        key=key, model=MODEL.model_copy(update={"name": name}), pipeline_class="FluxPipeline",
        workload=WORKLOAD, environment=where, plan=what, budget_bytes=budget_bytes,
        objective="latency", estimate=ESTIMATE, measurement=measurement(**measured),
        baseline_plan=plan(), baseline=measurement(step_ms=24.5), quality=quality(),
        artifacts=artifacts, study=study, created_at=later(minutes),
    )  # fmt: skip


def trial(threads: int = 1, log: ArtifactRef | None = None) -> Trial:
    return Trial(
        rung="denoiser", plan=plan(threads), estimate=ESTIMATE, measurement=measurement(),
        started_at=NOW, duration_s=3.5, log=log,
    )  # fmt: skip


def inventory(weights: str = "b" * 64) -> ModelInventory:
    layer = LinearLayer(name="proj", in_features=8, out_features=8, bias=True)
    denoiser = ComponentInventory(
        name="transformer", class_name="FluxTransformer2DModel", role="denoiser", elements=72,
        other_elements=8, buffer_bytes=0, linears=(layer,), largest_leaf_elements=72,
        largest_block_elements=72,
    )  # fmt: skip
    return ModelInventory(
        pipeline_class="FluxPipeline", architecture="a" * 64, weights=weights,
        components=(denoiser,), profiles=(), resolution_factor=16, default_steps=4,
        made_with={"diffusers": "0.42.1"},
    )  # fmt: skip


def timing_key(rows: int = 4096, *, place: Environment = ENVIRONMENT) -> TimingKey:
    return TimingKey(
        hardware=place.hardware.digest, runtime=place.runtime.digest, kind="linear", name="linear",
        shape=(rows, 3072, 12288), dtype="bfloat16", bias=True, scheme="int8_dynamic",
    )  # fmt: skip


def timing(
    rows: int = 4096,
    outcome: TimingOutcome = "measured",
    median_ms: float = 1.5,
    *,
    place: Environment = ENVIRONMENT,
) -> Timing:
    key = timing_key(rows, place=place)
    if outcome in ("measured", "noisy"):
        return Timing(
            key=key, outcome=outcome, median_ms=median_ms, mad_ms=0.125, samples=20, sqnr_db=38.5
        )
    return Timing(key=key, outcome=outcome, samples=0, message="out of memory")


def verification(of: TuningRecord, *problems: str, minutes: float = 3) -> Verification:
    return Verification(
        record=of.id,
        study="study",
        verified_at=later(minutes),
        latency_s=2.5,
        peak_vram_bytes=1000,
        problems=problems,
    )


def job(budget_bytes: int = 2 * GIB, *, selector: str = ANY_DEVICE, **asked: Any) -> JobBody:
    key = JobKey(
        model="tiny-flux", ref=MODEL, workload=WORKLOAD, budget_bytes=budget_bytes,
        selector=selector,
    )  # fmt: skip
    return JobBody(key=key, **asked)
