"""A small registry with real rows: one finished study, and two versions of one record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry.client import open_registry
from registry.digest import digest
from registry.environment import Environment, Hardware, Runtime
from registry.plan import Compilation, ComponentPlan, PipelineOptions, Plan, Quantization
from registry.record import (
    Estimate,
    Failure,
    Measurement,
    PeakMemory,
    Quality,
    RecordKey,
    ShapeMeasurement,
    Trial,
    TuningRecord,
)
from registry.store import Registry
from registry.studies import StudyEnd
from registry.workload import ModelRef, Shape, Workload

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODEL = ModelRef(name="tiny-flux", source="catalog", weights="random")
WORKLOAD = Workload(shapes=(Shape(height=64, width=64),))
BASELINE = Plan(pipeline=PipelineOptions(components={"transformer": ComponentPlan()}))
WINNER = Plan(
    pipeline=PipelineOptions(
        components={
            "transformer": ComponentPlan(
                quantization=Quantization(scheme="int8_weight_only"),
                compilation=Compilation(scope="regional", fullgraph=True),
            )
        }
    )
)
ESTIMATE = Estimate(
    peak_vram_bytes=900_000_000,
    load_peak_vram_bytes=800_000_000,
    host_bytes=10**9,
    step_ms=6.0,
    latency_s=0.03,
    source="roofline",
)
QUALITY = Quality(
    policy="balanced", passed=True, calibrated=False, worst={"sqnr_db": 38.2}, scores=()
)


def environment(driver: str | None = None) -> Environment:
    hardware = Hardware(
        device="cpu",
        name="Test CPU",
        vram_bytes=16 * 10**9,
        host_ram_bytes=16 * 10**9,
        cpu_model="Test CPU",
        cpu_cores=2,
    )
    runtime = Runtime(
        python="3.11",
        torch="2.13.0+cpu",
        torchao="0.18.0",
        diffusers="0.42.1",
        transformers="5.23.0",
        accelerate="1.15.0",
        driver=driver,
        apply_engine=1,
    )
    return Environment(hardware=hardware, runtime=runtime)


def measurement(step_ms: float, latency_s: float, peak_vram_bytes: int) -> Measurement:
    shape = ShapeMeasurement(
        shape=WORKLOAD.shapes[0],
        steps=4,
        step_ms=step_ms,
        step_ms_mad=0.1,
        first_call_s=9.0,
        latency_samples_s=(latency_s,),
        latency_s=latency_s,
    )
    memory = PeakMemory(
        peak_vram_bytes=peak_vram_bytes, load_peak_vram_bytes=10**8, host_peak_bytes=2 * 10**9
    )
    return Measurement(rung="replay", shapes=(shape,), memory=memory, load_s=1.0, start_s=2.0)


def record(
    study: str,
    created_at: datetime,
    *,
    step_ms: float = 5.0,
    model: ModelRef = MODEL,
    proved_on: Environment | None = None,
    architecture: str = "a" * 64,
    weights: str = "b" * 64,
) -> TuningRecord:
    env = proved_on or environment()
    return TuningRecord(
        key=RecordKey(
            architecture=architecture,
            weights=weights,
            workload=WORKLOAD.digest,
            hardware=env.hardware.digest,
            runtime=env.runtime.digest,
            plan=WINNER.digest,
        ),
        model=model,
        pipeline_class="FluxPipeline",
        workload=WORKLOAD,
        environment=env,
        plan=WINNER,
        budget_bytes=2 * 10**9,
        objective="latency",
        estimate=ESTIMATE,
        measurement=measurement(step_ms, 0.025, 850_000_000),
        baseline_plan=BASELINE,
        baseline=measurement(10.0, 0.05, 1_000_000_000),
        quality=QUALITY,
        study=study,
        created_at=created_at,
    )


def trials() -> tuple[Trial, ...]:
    return (
        Trial(
            rung="pipeline",
            plan=BASELINE,
            estimate=ESTIMATE,
            measurement=measurement(10.0, 0.05, 1_000_000_000),
            started_at=NOW,
            duration_s=4.0,
        ),
        Trial(
            rung="denoiser",
            plan=WINNER,
            failure=Failure(kind="crashed", message="segmentation fault <in> & out"),
            started_at=NOW,
            duration_s=2.0,
        ),
    )


def make(path: Path, *, identity: str = digest("study")) -> tuple[Registry, str, tuple[str, str]]:
    """The registry, the study's id, and the ids of the older and the newer record."""
    registry = open_registry(path)
    study = registry.begin_study(
        identity,
        model=MODEL,
        workload=WORKLOAD,
        environment=environment(),
        request={"budget_bytes": 2 * 10**9},
        now=NOW,
    )
    for trial in trials():
        registry.add_trial(study.id, trial)
    older = record(study.id, NOW)
    newer = record(study.id, NOW + timedelta(hours=1), step_ms=4.0)
    registry.publish([older], now=NOW)
    end = StudyEnd(study.id, "finished", {"trials": 2})
    registry.publish([newer], now=NOW + timedelta(hours=1), end=end)
    return registry, study.id, (older.id, newer.id)
