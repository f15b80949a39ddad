"""A short run as its events, shared by the tests of the views."""

from __future__ import annotations

from datetime import UTC, datetime

from registry.plan import ComponentPlan, PipelineOptions, Plan
from registry.record import Failure, Measurement, PeakMemory, Quality, ShapeMeasurement, Trial
from registry.workload import Shape
from tuner.events import (
    BestChanged,
    MemorySample,
    Note,
    StageStarted,
    StudyEvent,
    StudyStarted,
    TrialFinished,
    TrialStarted,
    WorkerProgress,
)

PLAN = Plan(pipeline=PipelineOptions(components={"transformer": ComponentPlan()}))
SHAPE = Shape(height=64, width=64)
STARTED = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def measurement(step_ms: float, peak_vram_bytes: int, latency_s: float | None) -> Measurement:
    shape = ShapeMeasurement(
        shape=SHAPE, steps=4, step_ms=step_ms, first_call_s=1.5, latency_s=latency_s
    )
    memory = PeakMemory(peak_vram_bytes=peak_vram_bytes, load_peak_vram_bytes=peak_vram_bytes)
    return Measurement(rung="pipeline", shapes=(shape,), memory=memory, load_s=2.0, start_s=3.0)


def trial(**fields: object) -> Trial:
    return Trial.model_validate(
        {"rung": "pipeline", "plan": PLAN, "started_at": STARTED, "duration_s": 9.5, **fields}
    )


MEASURED = trial(measurement=measurement(101.0, 14_200_000_000, 3.21))
FAILED = trial(failure=Failure(kind="out_of_memory", message="needs 2 GB more\nTraceback"))
REJECTED = trial(
    measurement=measurement(90.0, 12_000_000_000, 2.9),
    quality=Quality(
        policy="fast",
        passed=False,
        calibrated=True,
        worst={"sqnr_db": 9.0},
        scores=(),
        reasons=("9 < 10",),
    ),
)
DROPPED = trial(dropped="would need 30 GB")

EVENTS: tuple[StudyEvent, ...] = (
    StudyStarted("5f3c", kept_trials=2),
    StageStarted("search", "denoiser"),
    TrialStarted("denoiser", "fp8 per row", number=3, planned=20),
    WorkerProgress("compile", 1, 3),
    MemorySample(14_000_000_000, 24_000_000_000),
    MemorySample(9_000_000_000, 24_000_000_000),
    TrialFinished(MEASURED, "fp8 per row"),
    BestChanged("fp8 per row", 101.0, None, 14_200_000_000),
    TrialStarted("pipeline", "bf16", number=4),
    TrialFinished(FAILED, "bf16"),
    Note("another process uses 1.00 GB of the GPU"),
)
