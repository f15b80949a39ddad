"""The desk: jobs and limits of each rung, and what becomes of an outcome."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from registry.errors import RegistryFull
from registry.plan import Plan, ProcessOptions
from registry.record import Estimate
from tests.tuner.study_bench import GB, StudyBench
from tuner.desk import SILENCE_LIMIT_S, TRIAL_LIMIT_S, TrialDesk
from tuner.events import ignore
from tuner.planning import Planning
from tuner.protocol import TrialJob
from tuner.runner import Limits, Outcome


class Recorder:
    """Stands for the Runner: keeps what it was asked and passes it on to the real one."""

    def __init__(self, bench: StudyBench) -> None:
        self._runner = bench.runner()
        self.asked: list[tuple[Any, Limits]] = []

    def run(self, job: Any, limits: Limits, *rest: Any, **options: Any) -> Outcome:
        self.asked.append((job, limits))
        return self._runner.run(job, limits, *rest, **options)

    @property
    def job(self) -> TrialJob:
        job = self.asked[-1][0]
        assert isinstance(job, TrialJob)
        return job

    @property
    def limits(self) -> Limits:
        return self.asked[-1][1]


class Desk:
    def __init__(self, root: Path, **changes: Any) -> None:
        self.bench = StudyBench(root)
        self.recorder = Recorder(self.bench)
        request = self.bench.request(**changes)
        runner: Any = self.recorder
        self.desk = TrialDesk(
            request, runner, self.bench.registry, root / "study", self.bench.clock, ignore
        )
        planning = Planning(request, self.bench.inventory, self.bench.environment)
        self.baseline = planning.baselines()[0]
        self.compiled = planning.survey().kept[0]


@pytest.fixture
def at(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def slow(estimate: Estimate, latency_s: float) -> Estimate:
    return estimate.model_copy(update={"latency_s": latency_s})


def test_a_baseline_leaves_the_reference(at: Desk) -> None:
    finished = at.desk.baseline(at.baseline.plan, at.baseline.estimate, None)
    assert at.desk.has_reference
    assert finished.trial.quality is None
    assert finished.trial.estimate == at.baseline.estimate
    assert (at.recorder.job.rung, at.recorder.job.reference_in) == ("pipeline", None)


def test_a_candidate_is_judged_and_its_cache_captured(at: Desk) -> None:
    at.desk.baseline(at.baseline.plan, at.baseline.estimate, None)
    plan, estimate = at.compiled.plan, at.compiled.estimate
    trial = at.desk.measure("pipeline", plan, estimate, None).trial
    assert trial.quality is not None
    assert trial.quality.worst == {"sqnr_db": 40.0}
    assert at.desk.artifact_path(plan).is_file()


def test_nothing_is_captured_of_a_plan_that_compiles_nothing(at: Desk) -> None:
    at.desk.baseline(at.baseline.plan, at.baseline.estimate, None)
    at.desk.measure("pipeline", at.baseline.plan, at.baseline.estimate, None)
    assert at.recorder.job.artifact_out is None


def test_a_replay_begins_and_ends_without_a_cache_folder(at: Desk, tmp_path: Path) -> None:
    stale = tmp_path / "study" / "replay-cache" / "stale"
    stale.mkdir(parents=True)
    plan, estimate = at.compiled.plan, at.compiled.estimate
    at.desk.replay(plan, estimate, None, whole=False, limit_s=None)
    assert at.recorder.job.repeats == 1
    assert not stale.parent.exists()


@pytest.mark.parametrize(
    ("latency_s", "repeats"), [(1.0, 5), (6.0, 3), (12.0, 1), (60.0, 1)], ids=str
)
def test_slow_baselines_are_repeated_less(at: Desk, latency_s: float, repeats: int) -> None:
    at.desk.baseline(at.baseline.plan, slow(at.baseline.estimate, latency_s), None)
    assert at.recorder.job.repeats == repeats


@pytest.mark.parametrize(
    ("limit_s", "wall_s"),
    [(None, TRIAL_LIMIT_S), (60.0, 60.0), (10 * TRIAL_LIMIT_S, TRIAL_LIMIT_S)],
)
def test_limits(at: Desk, limit_s: float | None, wall_s: float) -> None:
    at.desk.baseline(at.baseline.plan, at.baseline.estimate, limit_s)
    assert at.recorder.limits.wall_s == wall_s
    assert at.recorder.limits.progress_s == min(wall_s, SILENCE_LIMIT_S)
    assert at.recorder.limits.device_bytes == 2 * GB


def test_no_time_is_not_all_the_time(at: Desk) -> None:
    at.bench.rule({"takes_s": 30.0}, kind="trial")
    at.bench.write_table()
    trial = at.desk.baseline(at.baseline.plan, at.baseline.estimate, 0.0).trial
    assert trial.failure is not None
    assert trial.failure.kind == "timeout"


def test_the_host_budget_is_the_workers(tmp_path: Path) -> None:
    at = Desk(tmp_path, host_budget_bytes=5 * GB)
    at.desk.baseline(at.baseline.plan, at.baseline.estimate, None)
    assert at.recorder.limits.host_bytes == 5 * GB


def test_a_log_that_cannot_be_kept_leaves_nothing(at: Desk) -> None:
    """A disk that is full, as the kernel tells it of one file."""
    at.bench.rule({"failure": "error", "prints": "x" * 2**20}, kind="trial")
    at.bench.write_table()
    registry = at.bench.registry
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    put = registry.put_artifact

    def put_on_a_full_disk(*given: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
        try:
            return put(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "put_artifact", put_on_a_full_disk)
        with pytest.raises(RegistryFull, match="nothing was kept of it"):
            at.desk.baseline(at.baseline.plan, at.baseline.estimate, None)
    assert at.bench.leftovers() == []
    assert registry.check() == []
    assert not list(Path(f"{registry.path}.artifacts").rglob("*/[0-9a-z]*"))


def test_every_plan_of_a_study_has_its_own_cache_file(at: Desk) -> None:
    other = Plan(pipeline=at.compiled.plan.pipeline, process=ProcessOptions(threads=3))
    assert at.desk.artifact_path(other) != at.desk.artifact_path(at.compiled.plan)
