"""Profiles a plan in a worker process, and keeps what was found with its trace.

A profile is kept as a study of one trial: `tuner history --studies` lists it, `tuner show` prints
what it said, and its trace stays as long as the study does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.digest import digest
from registry.environment import Environment
from registry.errors import TrialFailed
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import ArtifactRef, Estimate, Measurement, Trial
from registry.store import Registry
from registry.workload import Shape, Workload
from tuner.clock import Clock
from tuner.cost_model import CostModel
from tuner.desk import SILENCE_LIMIT_S, TRIAL_LIMIT_S
from tuner.floors import step_floors_ms
from tuner.model_spec import ModelSpec
from tuner.profile import StepProfile, step_profile
from tuner.protocol import Event, ProfileJob, ProfileResult, TrialJob
from tuner.request import DEFAULT_SEEDS, default_prompts
from tuner.runner import Limits, Outcome, Runner

PROFILED = "torch.profiler ran in the same process: its memory is in the peak"
PROFILER_BYTES = 2 * 10**9
"""On a CPU the recorded events lie in the memory that the budget caps, so the cap is that much
higher."""
TRACE_FILE = "trace.json.gz"


@dataclass(frozen=True)
class Subject:
    """A model, the plan that is profiled, and the shape it is profiled at. `workload` is what the
    plan was made for: each of its shapes is run once before."""

    model: ModelSpec
    plan: Plan
    workload: Workload
    shape: Shape
    budget_bytes: int


@dataclass(frozen=True)
class Profiled:
    """A plan's profile as it is kept: `study` is the id it is shown by, `trace` its artifact."""

    plan: Plan
    profile: StepProfile
    study: str
    trace: ArtifactRef


class Profiling:
    """Profiles on one machine. `folder` is for what lies between worker and registry."""

    def __init__(
        self,
        runner: Runner,
        registry: Registry,
        environment: Environment,
        inventory: ModelInventory,
        folder: Path,
        clock: Clock,
        compile_cache_dir: Path,
    ) -> None:
        self._runner, self._registry = runner, registry
        self._environment, self._inventory = environment, inventory
        self._folder, self._clock = folder, clock
        self._compile_cache_dir = compile_cache_dir

    def profile(
        self,
        subject: Subject,
        steps: int,
        describe: Callable[[StepProfile], Sequence[str]],
        on_event: Callable[[Event], None] | None = None,
    ) -> Profiled:
        """Runs and keeps it; `describe` gives the sentences that are kept with it.

        Raises TrialFailed with the worker's own words, and RegistryError.
        """
        estimate, started_at = self._estimate(subject), self._clock.now()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace_path = self._folder / TRACE_FILE
        outcome = self._run(self._job(subject, steps, trace_path), on_event)
        result = _result_of(outcome)
        floors = step_floors_ms(self._inventory, self._environment, subject.plan, subject.shape)
        profile = step_profile(result, floors)
        trace = self._registry.put_artifact("profile", trace_path)
        trace_path.unlink()
        trial = Trial(
            rung="denoiser",
            plan=subject.plan,
            estimate=estimate,
            measurement=_marked(result.trial.measurement),
            started_at=started_at,
            duration_s=outcome.duration_s,
            log=trace,
        )
        study = self._keep(subject, steps, trial, describe(profile))
        return Profiled(subject.plan, profile, study, trace)

    def _estimate(self, subject: Subject) -> Estimate:
        isa = self._environment.runtime.cpu_isa
        model = CostModel(self._inventory, self._environment.hardware, cpu_isa=isa)
        return model.estimate(subject.plan, subject.workload)

    def _job(self, subject: Subject, steps: int, trace_path: Path) -> ProfileJob:
        cache = self._compile_cache_dir / subject.plan.digest[:16]
        cache.mkdir(parents=True, exist_ok=True)
        trial = TrialJob(
            model=subject.model,
            workload=subject.workload,
            plan=subject.plan,
            rung="denoiser",
            budget_bytes=subject.budget_bytes,
            prompts=default_prompts(subject.model)[:1],
            seeds=DEFAULT_SEEDS[:1],
            compile_cache_dir=str(cache.absolute()),
        )
        trace_out = str(trace_path.absolute())
        return ProfileJob(trial=trial, shape=subject.shape, steps=steps, trace_out=trace_out)

    def _run(self, job: ProfileJob, on_event: Callable[[Event], None] | None) -> Outcome:
        limits = Limits(
            wall_s=TRIAL_LIMIT_S,
            progress_s=SILENCE_LIMIT_S,
            device_bytes=job.trial.budget_bytes + PROFILER_BYTES,
        )
        return self._runner.run(job, limits, on_event)

    def _keep(self, subject: Subject, steps: int, trial: Trial, found: Sequence[str]) -> str:
        """The study's id."""
        request = {"command": "profile", "steps": steps, "budget_bytes": subject.budget_bytes}
        row = self._registry.begin_study(
            digest([request, subject.plan, subject.workload, trial.started_at.isoformat()]),
            model=subject.model.ref,
            workload=subject.workload,
            environment=self._environment,
            request={**request, "shape": subject.shape.model_dump(mode="json")},
            now=trial.started_at,
        )
        self._registry.add_trial(row.id, trial)
        summary = {"profile": list(found)}
        now = self._clock.now()
        self._registry.finish_study(row.id, status="finished", summary=summary, now=now)
        return row.id


def _result_of(outcome: Outcome) -> ProfileResult:
    """The log's folder goes with a result, and stays to be read without one."""
    if isinstance(outcome.result, ProfileResult):
        shutil.rmtree(outcome.log_path.parent, ignore_errors=True)
        return outcome.result
    reason = outcome.failure.message if outcome.failure else "the worker sent no result"
    raise TrialFailed(f"the plan could not be profiled: {reason}", hint=f"Log: {outcome.log_path}")


def _marked(measured: Measurement) -> Measurement:
    """No figure to learn from: what the device showed includes the profiler."""
    known = f"{measured.contaminated}; " if measured.contaminated else ""
    return measured.model_copy(update={"contaminated": known + PROFILED})
