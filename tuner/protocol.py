"""What is said between the process that searches and the worker that holds torch.

The parent writes one job as JSON to the worker's standard input; the worker writes events, one
JSON object a line, to an inherited descriptor whose number is in `TUNER_EVENT_FD`. Standard output
and error belong to libraries and go to the trial's log.

A worker may be started ahead of its job, with the argument `AHEAD`: it imports what all jobs need,
writes a `Ready`, waits on standard input for the one line of a `Handover`, and goes on as any.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from registry.base import Frozen, FrozenMapping
from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import Dtype, LayerScheme, Plan
from registry.record import FailureKind, Measurement, Policy, QualityScore, Rung
from registry.timing import Timing, TimingKey
from registry.workload import Shape, Workload
from tuner.model_spec import ModelSpec

PROTOCOL = 1
EVENT_FD_VARIABLE = "TUNER_EVENT_FD"
AHEAD = "--ahead"


class InventoryJob(Frozen):
    """Build the pipeline on the meta device and count it at each of the workload's shapes."""

    kind: Literal["inventory"] = "inventory"
    protocol: int = PROTOCOL
    model: ModelSpec
    workload: Workload


class TrialJob(Frozen):
    """Load, apply, run and time one plan.

    `rung` "denoiser" times `denoiser_steps` steps of the real pipeline; "pipeline" and "replay"
    time `repeats` whole requests per shape at `steps` (None: the pipeline's default). Trained
    weights are scored on more pictures than `prompts` and `seeds` name while the verdict of
    `policy` is open.
    `budget_bytes` caps the device's memory, `outside_allocator_bytes` of it being outside torch's
    allocator; on a CPU the parent enforces it. `reference_in` is a folder that a baseline trial
    wrote as `reference_out`. `compile_cache_dir` is Inductor's and Triton's cache folder.
    `artifact_in` names compiled code whose signature the parent verified; the worker checks
    `artifact_in_sha256` on the bytes it loads. `artifact_out` is where to write one. `limit_s` is
    when the parent ends the trial, counted from its start; None: nobody said.
    """

    kind: Literal["trial"] = "trial"
    protocol: int = PROTOCOL
    model: ModelSpec
    workload: Workload
    plan: Plan
    rung: Rung
    device_index: int | None = None
    budget_bytes: int
    steps: int | None = None
    denoiser_steps: int = 6
    repeats: int = 3
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    policy: Policy = "balanced"
    reference_in: str | None = None
    reference_out: str | None = None
    compile_cache_dir: str
    artifact_in: str | None = None
    artifact_in_sha256: str | None = None
    artifact_out: str | None = None
    limit_s: float | None = None
    image_out: str | None = None


class ProfileJob(Frozen):
    """Do a denoiser trial, then `steps` more denoiser steps of `shape`, one of the workload's,
    under `torch.profiler`. The trace goes to `trace_out`: chrome's JSON, compressed by gzip."""

    kind: Literal["profile"] = "profile"
    protocol: int = PROTOCOL
    trial: TrialJob
    shape: Shape
    steps: int = Field(default=3, ge=1)
    trace_out: str


class TimingTarget(Frozen):
    """One thing to time at the request `shape`. `path` is the denoiser's name for the block, or for
    a block that holds linear layers of the key's shape; `layers` holds the scheme of each quantized
    layer of a block, by its name inside the block."""

    key: TimingKey
    path: str
    shape: Shape
    layers: FrozenMapping[LayerScheme] = Field(default={}, validate_default=True)


class TimingJob(Frozen):
    """Time single blocks and linear layers of the denoiser, without loading the rest of it.

    `dtype` is the plan's. Each target's timing is sent as it is known, so a job that is ended early
    keeps what it had; `rounds` of all that can be compared follow one another, and their timing
    replaces the first one.
    """

    kind: Literal["time_blocks"] = "time_blocks"
    protocol: int = PROTOCOL
    model: ModelSpec
    targets: tuple[TimingTarget, ...]
    dtype: Dtype
    device_index: int | None = None
    budget_bytes: int
    rounds: int = Field(default=7, ge=1)
    compile_cache_dir: str


class EnvironmentJob(Frozen):
    """Say hello and leave: the worker's own Environment is the authoritative one."""

    kind: Literal["environment"] = "environment"
    protocol: int = PROTOCOL
    device_index: int | None = None


AnyJob = InventoryJob | TrialJob | ProfileJob | TimingJob | EnvironmentJob
JOB = TypeAdapter[AnyJob](Annotated[AnyJob, Field(discriminator="kind")])


class Handover(Frozen):
    """The job of a worker that was started ahead: a file in its folder. `environment` is what the
    plan adds to the environment it was started with. It was held up for `paused_s` as it
    imported."""

    job: str
    environment: FrozenMapping[str]
    paused_s: float


class Ready(Frozen):
    """All is imported, and nothing done that a job could undo: CUDA was not opened."""

    event: Literal["ready"] = "ready"
    protocol: int = PROTOCOL


class Hello(Frozen):
    """The first event of every worker. `host_baseline_bytes` is its PSS after imports. `import_s`
    is by the worker's own clock, from its start until all was imported."""

    event: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    tuner_version: str
    environment: Environment
    host_baseline_bytes: int
    import_s: float


class Progress(Frozen):
    """Proof of life. `done` of `total` where a phase counts; `phase` is "load", "reference",
    "compile", "steps", "trace", "images", "score", "artifacts", "capture", "inventory", "blocks",
    "layers".
    """

    event: Literal["progress"] = "progress"
    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


class TrialResult(Frozen):
    """`artifact_bytes` is the size of what was written to `artifact_out`, 0 for nothing.
    `not_computed` says why a metric has no score."""

    event: Literal["trial_result"] = "trial_result"
    measurement: Measurement
    scores: tuple[QualityScore, ...] = ()
    not_computed: FrozenMapping[str] = Field(default={}, validate_default=True)
    calibrated: bool
    artifact_bytes: int = 0
    counters: FrozenMapping[int] = Field(default={}, validate_default=True)


class TracedOp(Frozen):
    """All calls of one kernel, copy or operator in a trace. `category` is the trace's own.

    `total_us` is their duration; `own_us` what of it nothing else accounts for: of an operator,
    without those that it calls; of a kernel or copy, without what ran beside earlier ones.
    """

    name: str
    category: str
    calls: int
    total_us: float
    own_us: float


class StepTrace(Frozen):
    """What `steps` denoiser steps did in `window_us`, on the device that `on` names.

    `own_us` of all `ops` and `idle_us` add up to the window. `idle_us` is by cause (see
    `tuner.traces`); `launches` counts the host's calls that start kernels.
    """

    on: Literal["cuda", "cpu"]
    steps: int
    window_us: float
    ops: tuple[TracedOp, ...]
    idle_us: FrozenMapping[float]
    launches: int


class ProfileResult(Frozen):
    """`trial` was measured before the profiler began. `graph_breaks` counts them by reason;
    `recompiles` says of each graph compiled again which guard failed."""

    event: Literal["profile_result"] = "profile_result"
    trial: TrialResult
    trace: StepTrace
    graph_breaks: FrozenMapping[int]
    recompiles: tuple[str, ...]
    trace_bytes: int


class InventoryResult(Frozen):
    event: Literal["inventory_result"] = "inventory_result"
    inventory: ModelInventory


class TimingDone(Frozen):
    """One target's timing; a later one of the same key replaces it."""

    event: Literal["timing"] = "timing"
    timing: Timing


class TimingResult(Frozen):
    """Every target was dealt with; `timed` of them have a time."""

    event: Literal["timing_result"] = "timing_result"
    timed: int


class EnvironmentResult(Frozen):
    event: Literal["environment_result"] = "environment_result"


class WorkerFailure(Frozen):
    """A failure the worker could still describe. Crashes and hangs are the parent's to name."""

    event: Literal["failure"] = "failure"
    kind: FailureKind
    message: str


Result = TrialResult | ProfileResult | InventoryResult | TimingResult | EnvironmentResult
Event = Hello | Progress | TimingDone | Result | WorkerFailure
EVENT = TypeAdapter[Event](Annotated[Event, Field(discriminator="event")])
