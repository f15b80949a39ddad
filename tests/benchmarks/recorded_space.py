"""Recorded trials made up for a space of known speeds: one for each denoiser of tiny-flux."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache

from benchmarks.recorded import RecordedTrial
from benchmarks.replay import Landscape, landscapes
from benchmarks.sampling import Choice, distinct
from registry.plan import Plan
from registry.record import (
    Estimate,
    Failure,
    Measurement,
    PeakMemory,
    Quality,
    QualityScore,
    Rung,
    ShapeMeasurement,
    Trial,
)
from registry.workload import ModelRef
from tests.tuner import flux
from tuner.cost_model import CostModel
from tuner.gate import judge
from tuner.labels import describe
from tuner.shapes import workload_of
from tuner.space import baseline_plans, survey

GB = 10**9
MB = 10**6
BUDGET_BYTES = 2 * GB
DENOISER = "transformer"
START = datetime(2026, 1, 1, tzinfo=UTC)
WORKLOAD = workload_of([(64, 64)], [1])
STEPS = 4
SCHEME_MS = {"int8_dynamic": 150.0, "int8_weight_only": 80.0, "float8_weight_only": 110.0}
SCOPE = {"none": 1.0, "regional": 0.5, "whole": 0.45}
FIRST_CALL_S = {"none": 0.2, "regional": 12.0, "whole": 60.0}


def step_ms(plan: Plan) -> float:
    """What is true of a plan."""
    own = plan.pipeline.component(DENOISER)
    light = 1.03 if "*norm*.linear" in own.quantization.skip else 1.0
    fused = 0.98 if plan.pipeline.fuse_qkv else 1.0
    scheme = SCHEME_MS.get(own.quantization.scheme, 100.0)
    tuned = 0.99 if own.compilation.mode != "default" else 1.0
    return scheme * light * fused * tuned * SCOPE[own.compilation.scope]


@cache
def choices() -> tuple[Choice, ...]:
    inventory, environment = flux.shipped("tiny-flux"), flux.cpu()
    isa = environment.runtime.cpu_isa
    model = CostModel(inventory, environment.hardware, cpu_isa=isa)
    found = survey(inventory, environment, WORKLOAD, BUDGET_BYTES, None, model)
    return distinct([Choice(item) for item in found.kept], "denoiser", DENOISER)


def recorded(
    changed: Callable[[Trial], Trial] = lambda trial: trial, *, mad_share: float = 0.0
) -> tuple[RecordedTrial, ...]:
    """The baseline, then a trial of each denoiser as `changed` leaves it. Times spread by
    `mad_share`."""
    inventory, environment = flux.shipped("tiny-flux"), flux.cpu()
    plan = baseline_plans(inventory, environment)[0]
    isa = environment.runtime.cpu_isa
    estimate = CostModel(inventory, environment.hardware, cpu_isa=isa).estimate(plan, WORKLOAD)
    first = _item(plan, estimate, trial("pipeline", plan, estimate, mad_share))
    others = ((item.plan, item.candidate.estimate) for item in choices())
    return (
        first.model_copy(update={"is_baseline": True}),
        *(_item(p, e, changed(trial("denoiser", p, e, mad_share))) for p, e in others),
    )


def space(changed: Callable[[Trial], Trial] = lambda trial: trial, **options: float) -> Landscape:
    (only,) = landscapes(recorded(changed, **options))
    return only


def trial(rung: Rung, plan: Plan, estimate: Estimate, mad_share: float = 0.0) -> Trial:
    first_s = FIRST_CALL_S[plan.pipeline.component(DENOISER).compilation.scope]
    ms = step_ms(plan)
    whole = rung == "pipeline"
    latency_s = STEPS * ms / 1000 + 0.05
    shape = ShapeMeasurement(
        shape=WORKLOAD.shapes[0],
        steps=STEPS if whole else 6,
        step_ms=ms,
        step_ms_mad=mad_share * ms,
        first_call_s=first_s,
        latency_samples_s=(latency_s,) * 5 if whole else (),
        latency_s=latency_s if whole else None,
    )
    measured = Measurement(
        rung=rung,
        shapes=(shape,),
        memory=PeakMemory(peak_vram_bytes=100 * MB, load_peak_vram_bytes=100 * MB),
        load_s=1.0,
        start_s=4.0,
    )
    return Trial(
        rung=rung,
        plan=plan,
        estimate=estimate,
        measurement=measured,
        quality=None if whole else verdict(30.0),
        started_at=START,
        duration_s=6.0 + first_s + 0.006 * ms,
    )


def verdict(sqnr_db: float) -> Quality:
    shape = WORKLOAD.shapes[0]
    score = QualityScore(metric="sqnr_db", value=sqnr_db, seed=0, prompt="a cat", shape=shape)
    return judge([score], "balanced", calibrated=False)


def failed(item: Trial) -> Trial:
    failure = Failure(kind="error", message="as the test says")
    return item.model_copy(update={"measurement": None, "quality": None, "failure": failure})


def _item(plan: Plan, estimate: Estimate, item: Trial) -> RecordedTrial:
    inventory = flux.shipped("tiny-flux")
    return RecordedTrial(
        model=ModelRef(name="tiny-flux", source="catalog", weights="random"),
        model_key="catalog:tiny-flux:random:0",
        family="flux",
        denoiser=DENOISER,
        default_steps=STEPS,
        workload=WORKLOAD,
        environment=flux.cpu(),
        budget_bytes=BUDGET_BYTES,
        label=describe(plan, inventory),
        roofline=estimate,
        trial=item,
        run="made-up",
    )
