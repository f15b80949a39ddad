"""Runs one trial for a study: makes its job and limits, and turns the outcome into a Trial."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import TrialFailed
from registry.plan import Plan
from registry.record import ArtifactRef, Estimate, Failure, Quality, Rung, Trial
from registry.store import Registry
from registry.timing import Timing, TimingKey
from tuner.clock import Clock
from tuner.code_folder import PRIVATE_MODE
from tuner.events import Listener, MemorySample, WorkerProgress
from tuner.gate import judge
from tuner.protocol import (
    Event,
    InventoryJob,
    InventoryResult,
    Progress,
    TimingDone,
    TimingJob,
    TimingTarget,
    TrialJob,
    TrialResult,
)
from tuner.request import StudyRequest
from tuner.runner import Limits, Outcome, Runner
from tuner.sampler import Sample
from tuner.units import format_bytes

TRIAL_LIMIT_S = 3600.0
"""Of any trial, also where the run has more time or no limit."""
SILENCE_LIMIT_S = 900.0
"""Longer than any known compilation of one graph is silent."""
QUICK_S = 5.0
SLOW_BASELINE_S = 10.0
"""Its reference pictures take as long again, and all else waits for it."""
SLOW_S = 20.0


@dataclass(frozen=True)
class Finished:
    """A trial, and what its worker said beside the measurement."""

    trial: Trial
    result: TrialResult | None


class TrialDesk:
    """`folder` is the study's own: references, captured artifacts, compile caches."""

    def __init__(
        self,
        request: StudyRequest,
        runner: Runner,
        registry: Registry,
        folder: Path,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self.request, self.folder = request, folder
        self._runner, self._registry = runner, registry
        self._clock, self._listener = clock, listener

    @property
    def reference_dir(self) -> Path:
        return self.folder / "reference"

    @property
    def has_reference(self) -> bool:
        """Whether a baseline has begun to write one: its trial says if it ended well."""
        return self.reference_dir.is_dir()

    def artifact_path(self, plan: Plan) -> Path:
        """Where the compile cache of a plan is captured."""
        return self.folder / "artifacts" / f"{plan.digest}.bin"

    def take_inventory(self) -> InventoryResult:
        """Raises TrialFailed with the worker's own words."""
        job = InventoryJob(model=self.request.model, workload=self.request.workload)
        outcome = self._run(job, TRIAL_LIMIT_S)
        if isinstance(outcome.result, InventoryResult):
            self._clean(outcome, keep=False)
            return outcome.result
        reason = outcome.failure.message if outcome.failure else "the worker sent no result"
        raise TrialFailed(
            f"the model could not be counted: {reason}", hint=f"Log: {outcome.log_path}"
        )

    def baseline(
        self,
        plan: Plan,
        estimate: Estimate,
        limit_s: float | None,
        *,
        budget_bytes: int | None = None,
    ) -> Finished:
        """The reference: trajectories and pictures kept, whole requests timed. `budget_bytes` where
        it may take more than what was asked for."""
        repeats = 1 if estimate.latency_s > SLOW_BASELINE_S else self._repeats(estimate)
        job = self._job(plan, "pipeline", self.folder / "compile", repeats)
        job = job.model_copy(update={"reference_out": str(self.reference_dir)})
        if budget_bytes is not None:
            job = job.model_copy(update={"budget_bytes": budget_bytes})
        return self._finish(plan, estimate, job, limit_s)

    def measure(
        self, rung: Rung, plan: Plan, estimate: Estimate, limit_s: float | None
    ) -> Finished:
        """A candidate at the denoiser or pipeline rung, held against the reference where there is
        one: without any its quality stays unknown, and so it can never be published."""
        job = self._job(plan, rung, self.folder / "compile", self._repeats(estimate))
        update = {"reference_in": str(self.reference_dir)} if self.has_reference else {}
        if rung == "pipeline" and compiles(plan):
            self.artifact_path(plan).parent.mkdir(parents=True, exist_ok=True)
            update["artifact_out"] = str(self.artifact_path(plan))
        return self._finish(plan, estimate, job.model_copy(update=update), limit_s)

    def time_targets(
        self, targets: Sequence[TimingTarget], limit_s: float | None
    ) -> tuple[tuple[Timing, ...], Failure | None]:
        """Blocks and layers alone. What was timed stands, however the job ended; beside others on
        the device it is noise."""
        cache = self.folder / "compile"
        cache.mkdir(parents=True, exist_ok=True)
        job = TimingJob(
            model=self.request.model,
            targets=tuple(targets),
            dtype=targets[0].key.dtype,
            budget_bytes=self.request.budget_bytes,
            compile_cache_dir=str(cache),
        )
        found: dict[TimingKey, Timing] = {}

        def hear(event: Event) -> None:
            if isinstance(event, TimingDone):
                found[event.timing.key] = event.timing
            self._on_event(event)

        limit_s = TRIAL_LIMIT_S if limit_s is None else min(limit_s, TRIAL_LIMIT_S)
        outcome = self._run(job, limit_s, hear)
        self._clean(outcome, keep=False)
        noisy = outcome.contaminated is not None
        return tuple(_as_noise(item) if noisy else item for item in found.values()), outcome.failure

    def replay(
        self,
        plan: Plan,
        estimate: Estimate,
        artifact: ArtifactRef | None,
        *,
        whole: bool,
        limit_s: float | None,
        scored: bool = False,
    ) -> Finished:
        """A fresh process with an empty compile cache and only what would be published. `whole`
        times as many requests as a proof needs; otherwise one. `scored` holds its pictures against
        the reference, which a proof has done before."""
        cache = self.folder / "replay-cache"
        shutil.rmtree(cache, ignore_errors=True)
        job = self._job(plan, "replay", cache, self._repeats(estimate) if whole else 1)
        if scored:
            job = job.model_copy(update={"reference_in": str(self.reference_dir)})
        if artifact is not None:
            path = self._registry.artifact_path(artifact)
            update = {"artifact_in": str(path), "artifact_in_sha256": artifact.sha256}
            job = job.model_copy(update=update)
        try:
            return self._finish(plan, estimate, job, limit_s)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def _repeats(self, estimate: Estimate) -> int:
        if estimate.latency_s < QUICK_S:
            return 5
        return 3 if estimate.latency_s < SLOW_S else 2

    def _job(self, plan: Plan, rung: Rung, cache: Path, repeats: int) -> TrialJob:
        cache.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        return TrialJob(
            model=self.request.model,
            workload=self.request.workload,
            plan=plan,
            rung=rung,
            budget_bytes=self.request.budget_bytes,
            steps=self.request.steps,
            repeats=repeats,
            prompts=self.request.prompts,
            seeds=self.request.seeds,
            policy=self.request.policy,
            compile_cache_dir=str(cache),
        )

    def _run(
        self,
        job: TrialJob | InventoryJob | TimingJob,
        limit_s: float,
        hear: Callable[[Event], None] | None = None,
    ) -> Outcome:
        limits = Limits(
            wall_s=limit_s,
            progress_s=min(limit_s, SILENCE_LIMIT_S),
            device_bytes=None if isinstance(job, InventoryJob) else job.budget_bytes,
            host_bytes=self.request.host_budget_bytes,
        )
        return self._runner.run(job, limits, hear or self._on_event, on_sample=self._on_sample)

    def _finish(
        self, plan: Plan, estimate: Estimate, job: TrialJob, limit_s: float | None
    ) -> Finished:
        started_at = self._clock.now()
        limit_s = TRIAL_LIMIT_S if limit_s is None else min(limit_s, TRIAL_LIMIT_S)
        outcome = self._run(job.model_copy(update={"limit_s": limit_s}), limit_s)
        result = outcome.result if isinstance(outcome.result, TrialResult) else None
        failure = outcome.failure or _over_budget(result, job.budget_bytes)
        keep = failure is not None or self.request.keep_logs
        trial = Trial(
            rung=job.rung,
            plan=plan,
            estimate=estimate,
            measurement=result.measurement if result and failure is None else None,
            failure=failure,
            quality=self._quality(job, result) if result and failure is None else None,
            started_at=started_at,
            duration_s=outcome.duration_s,
            hidden_s=outcome.hidden_s,
            log=self._clean(outcome, keep=keep),
        )
        return Finished(trial, result)

    def _quality(self, job: TrialJob, result: TrialResult) -> Quality | None:
        if job.reference_in is None:
            return None
        verdict = judge(result.scores, self.request.policy, result.calibrated)
        return verdict.model_copy(update={"not_computed": result.not_computed})

    def _clean(self, outcome: Outcome, *, keep: bool) -> ArtifactRef | None:
        """The log into the registry where it is worth keeping; the trial's folder away."""
        try:
            if not keep or not outcome.log_path.is_file():
                return None
            return self._registry.put_artifact("log", outcome.log_path)
        finally:
            shutil.rmtree(outcome.log_path.parent, ignore_errors=True)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._listener(WorkerProgress(event.phase, event.done, event.total))

    def _on_sample(self, sample: Sample) -> None:
        self._listener(MemorySample(sample.device_growth_bytes, self.request.budget_bytes))


def _over_budget(result: TrialResult | None, budget_bytes: int) -> Failure | None:
    """The allocator's cap leaves a margin for libraries; the budget itself does not."""
    if result is None:
        return None
    peak = result.measurement.memory.peak_vram_bytes
    if peak <= budget_bytes:
        return None
    message = f"peak of {format_bytes(peak)} is over the budget of {format_bytes(budget_bytes)}"
    return Failure(kind="out_of_memory", message=message)


def _as_noise(timing: Timing) -> Timing:
    update = {"outcome": "noisy"} if timing.outcome == "measured" else {}
    return timing.model_copy(update=update)


def compiles(plan: Plan) -> bool:
    """Whether anything of the plan is compiled, so that there is a cache to keep."""
    return any(item.compilation.scope != "none" for item in plan.pipeline.components.values())
