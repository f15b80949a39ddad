"""What is removed, and what never is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.errors import RecordNotFound
from registry.store import Registry
from tests.registry import samples
from tests.tuner.study_bench import ManualClock
from tuner.clock import SystemClock
from tuner.daemon.config import RetentionConfig
from tuner.daemon.retention import Retention

DAY_S = 86_400.0


@pytest.fixture
def logs_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


def logged(folder: Path, job: int, age_days: float, size_bytes: int = 10) -> Path:
    path = folder / f"{job}.log"
    path.write_bytes(b"x" * size_bytes)
    moment = SystemClock().now().timestamp() - age_days * DAY_S
    os.utime(path, (moment, moment))
    return path


def tidy(registry: Registry, logs_dir: Path, **config: float) -> list[str]:
    Retention(registry, logs_dir, lambda: RetentionConfig(**config), SystemClock()).tidy()
    return sorted(path.stem for path in logs_dir.iterdir())


def test_old_logs_go_and_those_of_open_jobs_stay(registry: Registry, logs_dir: Path) -> None:
    registry.jobs.enqueue(samples.job(), priority=0, now=samples.NOW)
    for job, age_days in ((1, 400.0), (2, 100.0), (3, 80.0)):
        logged(logs_dir, job, age_days)
    assert tidy(registry, logs_dir) == ["1", "3"]


def test_over_their_quota_the_oldest_logs_go(registry: Registry, logs_dir: Path) -> None:
    for job in range(1, 6):
        logged(logs_dir, job, age_days=10.0 - job, size_bytes=100)
    assert tidy(registry, logs_dir, logs=350.0) == ["3", "4", "5"]


def test_a_log_that_another_daemon_removes_meanwhile_is_no_trouble(
    registry: Registry, logs_dir: Path
) -> None:
    logged(logs_dir, 1, age_days=400.0)
    (logs_dir / "2.log").symlink_to(logs_dir / "gone")
    assert tidy(registry, logs_dir) == ["2"]


def test_artifacts_go_that_nothing_names(registry: Registry, logs_dir: Path) -> None:
    named = registry.put_artifact("compile_cache", b"named")
    lost = registry.put_artifact("profile", b"nobody's")
    registry.publish([samples.record(artifacts=(named,))], now=samples.NOW)
    tidy(registry, logs_dir)
    assert registry.read_artifact(lost) == b"nobody's", "a run may yet name it"
    for path in registry.path.with_name(f"{registry.path.name}.artifacts").glob("??/*"):
        os.utime(path, (0, 0))
    tidy(registry, logs_dir, garbage_age=1e-3)
    with pytest.raises(RecordNotFound):
        registry.artifact_path(lost)
    assert registry.read_artifact(named) == b"named"


def test_over_their_quota_artifacts_go_that_no_plan_in_service_needs(
    registry: Registry, logs_dir: Path
) -> None:
    old, new = (registry.put_artifact("compile_cache", data) for data in (b"old", b"new"))
    for minutes, artifact in enumerate((old, new)):
        record = samples.record(torch=f"2.{minutes}", artifacts=(artifact,))
        registry.publish([record], now=samples.later(minutes))
    for path in registry.path.with_name(f"{registry.path.name}.artifacts").glob("??/*"):
        os.utime(path, (0, 0))
    tidy(registry, logs_dir, garbage_age=1e-3, unused_age=1.0, artifacts=4.0)
    with pytest.raises(RecordNotFound):
        registry.artifact_path(old)
    assert registry.read_artifact(new) == b"new"


def test_without_a_registry_it_is_left_for_the_next_time(
    registry: Registry, logs_dir: Path
) -> None:
    logged(logs_dir, 1, 400.0)
    registry.path.unlink()
    clock = ManualClock()
    Retention(registry, logs_dir, RetentionConfig, clock).tidy()
    assert [path.stem for path in logs_dir.iterdir()] == ["1"]
