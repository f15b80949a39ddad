"""A made-up device: plans with structured step times, estimates that are wrong in a structured way.

Effects are shaped after FLUX on a data-centre GPU: quantization, compilation and attention kernels
act together, offloading is bound by the link, one combination fails, one scheme's picture is bad.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product

from registry.plan import (
    AttentionBackend,
    Compilation,
    CompileScope,
    ComponentPlan,
    GroupOffload,
    ModelOffload,
    PipelineOptions,
    Placement,
    Plan,
    Quantization,
    Resident,
    Scheme,
    SequentialOffload,
)
from registry.record import (
    Estimate,
    Failure,
    FailureKind,
    Measurement,
    PeakMemory,
    Quality,
    QualityScore,
    Rung,
    ShapeMeasurement,
    Trial,
)
from registry.workload import Shape, Workload
from tuner.candidate import Candidate
from tuner.gate import judge

START = datetime(2026, 1, 1, tzinfo=UTC)
SHAPE = Shape(height=1024, width=1024)
WORKLOAD = Workload(shapes=(SHAPE,))
STEPS = 28
GB = 10**9
DURATION_S: dict[Rung, float] = {"denoiser": 35.0, "pipeline": 45.0, "replay": 45.0}

SCHEMES: tuple[Scheme, ...] = (
    "none",
    "int8_weight_only",
    "int8_dynamic",
    "float8_weight_only",
    "float8_dynamic_tensor",
    "float8_dynamic_row",
)
SCOPES: tuple[CompileScope, ...] = ("none", "regional", "whole")
BACKENDS: tuple[AttentionBackend, ...] = (
    "default",
    "_native_cudnn",
    "_native_flash",
    "_native_efficient",
)
PLACEMENTS: tuple[Placement, ...] = (
    Resident(),
    ModelOffload(),
    GroupOffload(),
    SequentialOffload(),
)


def make_plan(
    scheme: Scheme = "none",
    scope: CompileScope = "none",
    backend: AttentionBackend = "default",
    placement: Placement | None = None,
    *,
    fuse_qkv: bool = False,
    text_scheme: Scheme = "none",
) -> Plan:
    denoiser = ComponentPlan(
        quantization=Quantization(scheme=scheme),
        placement=placement or Resident(),
        compilation=Compilation(scope=scope),
    )
    text = ComponentPlan(
        quantization=Quantization(scheme=text_scheme), placement=placement or Resident()
    )
    return Plan(
        pipeline=PipelineOptions(
            components={"transformer": denoiser, "text_encoder": text},
            attention_backend=backend,
            fuse_qkv=fuse_qkv,
        )
    )


def measurement(
    rung: Rung,
    step_ms: float,
    *,
    peak_bytes: int = 10 * GB,
    mad_ms: float = 0.0,
    beside_s: float = 0.5,
    first_call_s: float = 15.0,
    load_s: float = 10.0,
    layers: int = 304,
) -> Measurement:
    """Whole requests (five samples) unless the rung is the denoiser's."""
    whole = rung != "denoiser"
    latency_s = beside_s + STEPS * step_ms / 1000
    mad_s = STEPS * mad_ms / 1000
    samples = tuple(latency_s + mad_s * sign for sign in (-1, -1, 0, 1, 1)) if whole else ()
    shape = ShapeMeasurement(
        shape=SHAPE,
        steps=STEPS,
        step_ms=step_ms,
        step_ms_mad=mad_ms,
        first_call_s=first_call_s,
        latency_samples_s=samples,
        latency_s=latency_s if whole else None,
    )
    return Measurement(
        rung=rung,
        shapes=(shape,),
        memory=PeakMemory(peak_vram_bytes=peak_bytes, load_peak_vram_bytes=peak_bytes),
        load_s=load_s,
        start_s=3.0,
        layer_types={"transformer": {"Linear": layers}},
    )


def quality(sqnr_db: float, *, calibrated: bool = False) -> Quality:
    score = QualityScore(metric="sqnr_db", value=sqnr_db, seed=0, prompt="a cat", shape=SHAPE)
    return judge([score], "balanced", calibrated)


def trial(
    rung: Rung,
    plan: Plan,
    estimate: Estimate | None = None,
    *,
    measured: Measurement | None = None,
    failure: FailureKind | None = None,
    verdict: Quality | None = None,
    duration_s: float | None = None,
    after_s: float = 0.0,
) -> Trial:
    return Trial(
        rung=rung,
        plan=plan,
        estimate=estimate,
        measurement=measured,
        failure=Failure(kind=failure, message="it failed") if failure else None,
        quality=verdict,
        started_at=START + timedelta(seconds=after_s),
        duration_s=DURATION_S[rung] if duration_s is None else duration_s,
    )


def estimate(step_ms: float, peak_bytes: int = 10 * GB, *, beside_s: float = 0.5) -> Estimate:
    return Estimate(
        peak_vram_bytes=peak_bytes,
        load_peak_vram_bytes=peak_bytes,
        host_bytes=20 * GB,
        step_ms=step_ms,
        latency_s=beside_s + STEPS * step_ms / 1000,
        source="roofline",
    )


@dataclass(frozen=True)
class Truth:
    step_ms: float
    peak_bytes: int
    failure: FailureKind | None
    sqnr_db: float


class Landscape:
    """One seeded device and model. `run` is what a worker would answer."""

    def __init__(self, seed: int, *, error_sd: float = 0.10) -> None:
        self._random = random.Random(seed)
        self._error_sd = error_sd
        self._effects: dict[str, float] = {}
        self.truths: dict[str, Truth] = {}
        self.candidates = tuple(self._candidate(plan) for plan in self._plans())
        self.reference = next(c for c in self.candidates if c.plan == make_plan())

    def run(self, rung: Rung, plan: Plan) -> Trial:
        truth = self.truths[plan.digest]
        if truth.failure is not None:
            return trial(rung, plan, failure=truth.failure)
        noise = random.Random(f"{rung}{plan.digest}").gauss(0, 0.003)
        found = measurement(
            rung,
            truth.step_ms * math.exp(noise),
            peak_bytes=truth.peak_bytes,
            mad_ms=0.002 * truth.step_ms,
            first_call_s=15.0,
        )
        verdict = None if rung == "denoiser" else quality(truth.sqnr_db)
        return trial(rung, plan, measured=found, verdict=verdict)

    @property
    def best_step_ms(self) -> float:
        """Of plans that run and whose picture passes: what an exhaustive search finds."""
        return min(
            t.step_ms for t in self.truths.values() if t.failure is None and t.sqnr_db >= 15.0
        )

    def _plans(self) -> list[Plan]:
        grid = product(SCHEMES, SCOPES, BACKENDS, PLACEMENTS, (False, True), ("none", SCHEMES[1]))
        return [
            make_plan(scheme, scope, backend, placement, fuse_qkv=fused, text_scheme=text)
            for scheme, scope, backend, placement, fused, text in grid
        ]

    def _candidate(self, plan: Plan) -> Candidate:
        truth = self._truth(plan)
        self.truths[plan.digest] = truth
        error = self._error(plan) + self._random.gauss(0, 0.02)
        return Candidate(plan, estimate(truth.step_ms * math.exp(error), truth.peak_bytes))

    def _truth(self, plan: Plan) -> Truth:
        denoiser = plan.pipeline.component("transformer")
        scheme, scope = denoiser.quantization.scheme, denoiser.compilation.scope
        kind = denoiser.placement.kind
        step_ms = self._linear_ms(scheme, scope) + self._attention_ms(plan)
        step_ms += {"none": 60.0, "regional": 23.0, "whole": 22.5}[scope]
        step_ms *= 0.99 if plan.pipeline.fuse_qkv else 1.0
        weights_gb = 24.0 if scheme == "none" else 12.0
        link_ms = {"group_offload": 18.0, "sequential_offload": 120.0}.get(kind, 0.0) * weights_gb
        broken = kind == "group_offload" and scheme.startswith("float8")
        bad = scheme == "float8_dynamic_tensor" and self._effect("tensor bad", 1.0) > 0.8
        resident_gb = weights_gb if kind in ("resident", "model_offload") else 2.0
        return Truth(
            step_ms=max(step_ms, link_ms) + (200.0 if kind == "model_offload" else 0.0),
            peak_bytes=int((resident_gb + 4.0) * GB),
            failure="error" if broken else None,
            sqnr_db=9.0 if bad else 24.0,
        )

    def _linear_ms(self, scheme: Scheme, scope: CompileScope) -> float:
        base = {
            "none": 78.0,
            "int8_weight_only": 85.0,
            "int8_dynamic": 55.0,
            "float8_weight_only": 88.0,
            "float8_dynamic_tensor": 48.0,
            "float8_dynamic_row": 45.0,
        }[scheme]
        eager = 6.0 if scheme == "int8_dynamic" and scope == "none" else 1.0
        return base * eager * math.exp(self._effect(f"linear {scheme}", 0.12))

    def _attention_ms(self, plan: Plan) -> float:
        base = {"_native_cudnn": 30.0, "_native_flash": 46.0, "default": 42.0}
        backend = plan.pipeline.attention_backend
        return base.get(backend, 60.0) * math.exp(self._effect(f"attention {backend}", 0.12))

    def _error(self, plan: Plan) -> float:
        """Of the estimate, choice by choice."""
        denoiser = plan.pipeline.component("transformer")
        choices = (
            f"scheme {denoiser.quantization.scheme}",
            f"scope {denoiser.compilation.scope}",
            f"backend {plan.pipeline.attention_backend}",
            f"placement {denoiser.placement.kind}",
        )
        return self._effect("bias", 0.3) + sum(
            self._effect(f"error {choice}", self._error_sd) for choice in choices
        )

    def _effect(self, name: str, sd: float) -> float:
        if name not in self._effects:
            self._effects[name] = self._random.gauss(0, sd)
        return self._effects[name]
