"""What was predicted, what was measured, how good the pictures are, and what is published."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from registry.base import Frozen, FrozenMapping
from registry.digest import digest
from registry.environment import Environment
from registry.plan import Plan
from registry.workload import ModelRef, Shape, Workload

FailureKind = Literal[
    "out_of_memory", "timeout", "crashed", "unsupported", "rejected_quality", "timing", "error"
]
"""`timing`: a replay repeated everything but its times, which may be chance."""
Rung = Literal["bytes", "blocks", "denoiser", "pipeline", "replay"]
Policy = Literal["strict", "balanced", "fast"]
Objective = Literal["latency", "throughput", "first-image"]
ArtifactKind = Literal[
    "autoquant_cache", "compile_cache", "aot_package", "reference", "log", "profile"
]
MatchKind = Literal["exact", "architecture", "resolution", "stale", "estimated"]


class Estimate(Frozen):
    """Predicted before the trial and never changed after. `source` says from what:
    "roofline", "roofline+trials" or "blocks"; with ", every step computed" for a plan that caches
    steps, whose times are then those of the plan without that. `step_ms` and `latency_s` are the
    weighted means over the workload's shapes at the pipeline's default steps."""

    peak_vram_bytes: int
    load_peak_vram_bytes: int
    host_bytes: int
    step_ms: float
    latency_s: float
    source: str


class ShapeMeasurement(Frozen):
    """One shape's times, each sample a finished, synchronised request.

    `step_ms` is the median time between two consecutive steps' ends, under a step cache the median
    over requests of their mean, since some steps are not computed; `latency_s` the median of
    `latency_samples_s`, prompt to decoded picture at `steps`; `first_call_s` the first request,
    compilation included. Empty `latency_samples_s` (denoiser rung): only `step_ms` was measured.
    """

    shape: Shape
    steps: int
    step_ms: float
    step_ms_mad: float = 0.0
    first_call_s: float
    latency_samples_s: tuple[float, ...] = ()
    latency_s: float | None = None
    encode_s: float | None = None
    decode_s: float | None = None


class PeakMemory(Frozen):
    """Device and host memory over the whole trial, load included.

    `peak_vram_bytes` is what the device shows in use: the larger of NVML's growth and the
    allocator's reserved peak plus `outside_allocator_bytes` (context, libraries). On a CPU it is
    the worker's PSS over its post-import baseline.
    """

    peak_vram_bytes: int
    load_peak_vram_bytes: int
    allocator_peak_bytes: int = 0
    reserved_peak_bytes: int = 0
    outside_allocator_bytes: int = 0
    device_growth_peak_bytes: int = 0
    host_peak_bytes: int = 0


StartRung = Literal["ahead_of_time", "compile_cache", "compile"]
"""How compiled code is come by, the fastest first: whole functions of an artifact, which are not
even traced; its graphs and libraries; or compiled anew."""


class WarmStart(Frozen):
    """What a process took from compile artifacts, and what it compiled all the same. `graph`s are
    Inductor's, `library` the C++ ones that graphs on a CPU call, `function` what was compiled ahead
    of time: its graphs count as none. A miss there is one kind of call, which is then traced.
    `first_calls_s` is what the first call of each kind took, with loading, tracing and compiling
    its code; None where nothing was called that may be compiled ahead of time."""

    rung: StartRung
    function_hits: int = 0
    function_misses: int = 0
    graph_hits: int = 0
    graph_misses: int = 0
    library_hits: int = 0
    library_misses: int = 0
    first_calls_s: float | None = None

    @property
    def saves_nothing(self) -> bool:
        """Counts hits and no seconds: those depend on what else a machine does. A graph whose
        libraries are compiled anew costs nearly all that it did."""
        libraries = self.library_hits + self.library_misses
        taken = self.function_hits + self.graph_hits
        return taken == 0 or (libraries > 0 and self.library_hits == 0)

    @property
    def misses(self) -> int:
        """Of what costs a compilation: a function that is missing costs tracing, and may find its
        graphs."""
        return self.graph_misses + self.library_misses


class Measurement(Frozen):
    """One trial's outcome. `contaminated` names foreign load seen on the device, if any.

    `layer_types` counts resolved weight classes per component ("transformer":
    {"Linear/Float8Tensor": 304}); `graphs`, `graph_breaks` and `recompiles` are dynamo's
    counters after warm-up. `warm_start` is None where it started without artifacts.
    """

    rung: Rung
    shapes: tuple[ShapeMeasurement, ...]
    memory: PeakMemory
    load_s: float
    start_s: float
    cold_first_image_s: float | None = None
    warm_first_image_s: float | None = None
    warm_start: WarmStart | None = None
    graphs: int = 0
    graph_breaks: int = 0
    recompiles: int = 0
    sm_clock_mhz: int | None = None
    power_w: int | None = None
    contaminated: str | None = None
    layer_types: FrozenMapping[FrozenMapping[int]] = Field(default={}, validate_default=True)

    @property
    def start_saved_s(self) -> float | None:
        """By how much artifacts bring the first image forward; None where one was not timed."""
        if self.cold_first_image_s is None or self.warm_first_image_s is None:
            return None
        return self.cold_first_image_s - self.warm_first_image_s

    @property
    def step_ms(self) -> float:
        """Weighted mean over shapes."""
        total = sum(item.shape.weight for item in self.shapes)
        return sum(item.step_ms * item.shape.weight for item in self.shapes) / total

    @property
    def latency_s(self) -> float | None:
        """Weighted mean over shapes; None where only steps were measured."""
        values = [item.latency_s for item in self.shapes]
        if any(value is None for value in values):
            return None
        total = sum(item.shape.weight for item in self.shapes)
        weighted = zip(values, self.shapes, strict=True)
        return sum((value or 0.0) * item.shape.weight for value, item in weighted) / total


class Failure(Frozen):
    """Why a trial gave no measurement. `log` is the digest of its log artifact, if kept."""

    kind: FailureKind
    message: str
    exit_code: int | None = None
    log: str | None = None


class QualityScore(Frozen):
    """One metric of one seed, prompt and shape; decibels for SQNR and PSNR. `psnr_gain_db` is the
    picture's PSNR less that of the reference's own picture of the same prompt from another seed."""

    metric: Literal["sqnr_db", "embedding_sqnr_db", "psnr_db", "psnr_gain_db", "ssim", "lpips"]
    value: float
    seed: int
    prompt: str
    shape: Shape
    step: int | None = None


class Quality(Frozen):
    """Scores against the bf16 reference and the verdict of `policy`.

    `calibrated` is False where a metric has no meaning as picture quality: random weights.
    `worst` is the worst value per metric. `not_computed` says why
    a metric is missing: LPIPS, where its weights are not at hand.
    """

    policy: Policy
    passed: bool
    calibrated: bool
    worst: FrozenMapping[float]
    scores: tuple[QualityScore, ...]
    reasons: tuple[str, ...] = ()
    not_computed: FrozenMapping[str] = Field(default={}, validate_default=True)


class ArtifactRef(Frozen):
    """Content-addressed bytes: `sha256` of exactly `size_bytes` bytes."""

    kind: ArtifactKind
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Trial(Frozen):
    """One candidate tried at one rung, as kept in a study. Exactly one of `measurement` and
    `failure` is set, except for a candidate dropped unmeasured (`dropped` says why); one that was
    dropped and that an audit tried all the same has both. `log` is what its worker printed, where
    that was kept; of a profile it is the trace.

    `hidden_s` of its worker's start passed while the trial before it ran; they are not in
    `duration_s`, and are in the measurement's `start_s`.
    """

    rung: Rung
    plan: Plan
    estimate: Estimate | None = None
    measurement: Measurement | None = None
    failure: Failure | None = None
    quality: Quality | None = None
    dropped: str | None = None
    started_at: datetime
    duration_s: float = 0.0
    hidden_s: float = 0.0
    log: ArtifactRef | None = None


class RecordKey(Frozen):
    """What a record is found by. Two records of one key are versions of each other."""

    architecture: str
    weights: str
    workload: str
    hardware: str
    runtime: str
    plan: str

    @property
    def digest(self) -> str:
        return digest(self)


class TuningRecord(Frozen):
    """What is published: one proved plan with its evidence.

    `budget_bytes` is the VRAM budget it was proved under; `host_budget_bytes` likewise, if one
    was set. `study` is the id of the study that proved it.
    """

    key: RecordKey
    model: ModelRef
    pipeline_class: str
    workload: Workload
    environment: Environment
    plan: Plan
    budget_bytes: int
    host_budget_bytes: int | None = None
    objective: Objective
    estimate: Estimate
    measurement: Measurement
    baseline_plan: Plan
    baseline: Measurement
    quality: Quality
    artifacts: tuple[ArtifactRef, ...] = ()
    study: str
    created_at: AwareDatetime

    @property
    def id(self) -> str:
        """Digest of key, study and time: a name for exactly this version."""
        return digest([self.key, self.study, self.created_at.isoformat()])

    @property
    def speedup(self) -> float:
        """Baseline latency over this plan's, from one run; step time where latency is missing.
        The baseline over itself is 1: two measurements of one plan differ by noise alone."""
        if self.plan == self.baseline_plan:
            return 1.0
        ours, theirs = self.measurement.latency_s, self.baseline.latency_s
        if ours is not None and theirs is not None:
            return theirs / ours
        return self.baseline.step_ms / self.measurement.step_ms
