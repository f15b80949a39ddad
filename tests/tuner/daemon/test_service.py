"""The service step by step: a job's real process, time that the test moves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import update

from registry.schema import JOBS
from registry.sqlite_database import open_database
from tests.tuner.daemon.machine import DaemonMachine
from tests.tuner.study_bench import ManualClock
from tuner.daemon.config import DaemonConfig
from tuner.daemon.service import Post, Service

BEAT_S = 20.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def service(machine: DaemonMachine, clock: ManualClock) -> Iterator[Service]:
    machine.bench.rule({"takes_s": 60.0}, kind="trial")
    machine.bench.write_table()
    post = Post(machine.settings, machine.registry, "cpu", "cpu", "kind")
    made = Service(post, DaemonConfig(heartbeat=BEAT_S), clock)
    yield made
    made.stop("the test is over")
    machine.wait_for(lambda: not machine.at_work())


def test_a_heartbeat_that_failed_is_due_at_once_and_its_failure_said_once(
    machine: DaemonMachine,
    service: Service,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr("tuner.daemon.service.warn", lambda event, **_: said.append(event))
    job = machine.enqueue()
    assert service.step()
    machine.wait_for_trial()
    clock.elapsed_s += BEAT_S
    away = machine.registry_path.with_name("away")
    machine.registry_path.rename(away)
    assert [service.step() for _ in range(3)] == [False] * 3
    assert said == ["registry cannot be used"]
    assert str(machine.registry_path) in (service.trouble or "")
    away.rename(machine.registry_path)
    assert service.step()
    assert service.trouble is None
    assert machine.jobs.get(job.id).renewals == 1


def test_a_job_that_was_damaged_keeps_no_daemon_from_the_next(
    machine: DaemonMachine, service: Service
) -> None:
    broken, whole = machine.enqueue(0, priority=1), machine.enqueue(1)
    assert service.step()
    with open_database(machine.registry_path, create=False).write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == broken.id).values(body=b"{}"))
    working = service.working
    assert working is not None
    os.kill(working.process.pid, signal.SIGKILL)
    machine.wait_for(lambda: service.step() and service.working is None)
    assert service.step()
    assert service.working is not None
    assert service.working.job_id == whole.id
