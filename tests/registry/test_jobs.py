"""The queue of an SQLite registry, on each SQLite at hand; damage to its rows."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from sqlalchemy import update

from registry.errors import RegistryCorrupt
from registry.jobs import ANY_DEVICE
from registry.schema import JOBS
from registry.sqlite_database import open_database
from registry.store import Registry
from tests.registry import samples
from tests.registry.job_conformance import JobConformance


@pytest.mark.usefixtures("sqlite_driver")
class TestSqliteJobs(JobConformance):
    pass


@pytest.mark.parametrize(
    "damage", [{"body": b"{}"}, {"selector": "another"}, {"enqueued_at": "yesterday"}]
)
def test_a_damaged_job_is_found_and_left_out(
    registry: Registry, damage: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = (
        registry.jobs.enqueue(samples.job(10**9 + n), priority=0, now=samples.NOW)[0]
        for n in range(2)
    )
    with open_database(registry.path, create=False).write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == broken.id).values(**damage))
    with caplog.at_level(logging.WARNING):
        assert registry.jobs.list() == (whole,)
    assert f"job {broken.id}" in caplog.text
    lease = registry.jobs.acquire(
        "a", (ANY_DEVICE, "another"), now=samples.NOW, duration=timedelta(minutes=1)
    )
    assert lease is not None
    assert lease.job.id == whole.id
    with pytest.raises(RegistryCorrupt):
        registry.jobs.get(broken.id)
    assert any(f"job {broken.id}" in problem for problem in registry.check())


def test_a_damaged_job_keeps_no_other_from_being_reaped_and_can_be_cancelled(
    registry: Registry,
) -> None:
    jobs = registry.jobs
    for number in range(2):
        jobs.enqueue(samples.job(10**9 + number), priority=0, now=samples.NOW)
    for owner in ("a", "b"):
        jobs.acquire(owner, (ANY_DEVICE,), now=samples.NOW, duration=timedelta(minutes=1))
    with open_database(registry.path, create=False).write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == 1).values(body=b"{}"))
    reaped = jobs.reap(jobs.sightings(), now=samples.later(2))
    assert [job.id for job in reaped] == [2]
    assert jobs.counts() == {"queued": 2}
    with pytest.raises(RegistryCorrupt, match="job 1"):
        jobs.enqueue(samples.job(10**9), priority=0, now=samples.later(3))
    jobs.cancel(1, now=samples.later(3))
    assert jobs.enqueue(samples.job(10**9), priority=0, now=samples.later(4))[1]
