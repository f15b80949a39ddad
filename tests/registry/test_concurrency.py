"""Many processes on one registry: nothing lost, nothing twice, nothing refused."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from registry.client import open_registry
from registry.jobs import ANY_DEVICE
from registry.schema import META, SCHEMA_HEAD
from registry.sqlite_database import open_database
from registry.store import Registry
from tests.registry import children, samples

PROCESSES = 8


def test_first_opens_at_once(path: Path, sqlite_driver: str) -> None:
    revisions = children.together(children.open_new, [(path,)] * PROCESSES)
    assert revisions == [SCHEMA_HEAD] * PROCESSES
    assert open_registry(path, create=False).check() == []


def test_no_update_is_lost(registry: Registry) -> None:
    times = 25
    children.together(children.increment, [(registry.path, times)] * PROCESSES)
    with open_database(registry.path, create=False).read() as connection:
        value = connection.scalar(select(META.c.value).where(META.c.key == "counter"))
    assert value == str(PROCESSES * times)


def test_publishers_of_one_key(registry: Registry) -> None:
    publishers = 16
    ids = children.together(
        children.publish_one, [(registry.path, number) for number in range(publishers)]
    )
    history = registry.history()
    assert {entry.record.id for entry in history} == set(ids)
    assert [entry.status for entry in history] == ["current"] + ["superseded"] * (publishers - 1)
    newest_first = [entry.record.id for entry in history]
    assert [entry.superseded_by for entry in history[1:]] == newest_first[:-1]
    blobs = list(registry.path.with_name(f"{registry.path.name}.artifacts").glob("??/*"))
    assert [blob.name for blob in blobs] == [history[0].record.artifacts[0].sha256]
    assert registry.check() == []


def test_a_study_is_begun_once(registry: Registry) -> None:
    ids = children.together(children.begin_study, [(registry.path,)] * PROCESSES)
    assert len(set(ids)) == 1
    assert len(registry.studies()) == 1


def test_timings_of_many_processes(path: Path, sqlite_driver: str) -> None:
    """Nothing is lost, each key is new to one process alone, and the newest measured time stays
    whoever came last."""
    rows = 50
    registry = open_registry(path)
    given = [(path, number, rows) for number in range(PROCESSES)]
    assert sum(children.together(children.put_timings, given)) == rows + PROCESSES
    found = {item.timing.key.shape[0]: item for item in registry.all_timings()}
    assert len(found) == rows + PROCESSES
    shared = {found[row].timing.median_ms for row in range(1, rows + 1)}
    assert shared == {float(PROCESSES)}
    assert registry.check() == []


def test_a_writer_waits_for_another(registry: Registry) -> None:
    """A second writer in the same moment waits at most as long as it was told to."""
    database = open_database(registry.path, create=False)
    with database.write():
        registry.note_fetch("f" * 64, samples.NOW)


def test_ten_processes_acquire_ten_jobs(path: Path, sqlite_driver: str) -> None:
    jobs = open_registry(path).jobs
    numbers = range(10)
    ids = {jobs.enqueue(samples.job(10**9 + n), priority=0, now=samples.NOW)[0].id for n in numbers}
    claimed = children.together(children.acquire_job, [(path, n) for n in numbers])
    assert (len(claimed), set(claimed)) == (10, ids)
    assert children.alone(children.acquire_job, path, 11) is None


def test_a_question_is_enqueued_once(registry: Registry) -> None:
    asked = children.together(children.enqueue_job, [(registry.path,)] * PROCESSES)
    assert len({job_id for job_id, _ in asked}) == 1
    assert sorted(is_new for _, is_new in asked) == [False] * (PROCESSES - 1) + [True]


def test_two_devices_share_a_hundred_jobs(path: Path, sqlite_driver: str) -> None:
    """Each is done once, by a process that its selector allows."""
    jobs = open_registry(path).jobs
    selectors = ("gpu-0", "gpu-1", ANY_DEVICE)
    for number in range(100):
        body = samples.job(10**9 + number, selector=selectors[number % 3])
        jobs.enqueue(body, priority=number % 7, now=samples.NOW)
    workers = [(path, gpu, (ANY_DEVICE, gpu)) for gpu in selectors[:2]]
    done = children.together(children.work_until_empty, workers)
    assert sorted([*done[0], *done[1]]) == [job.id for job in reversed(jobs.list())]
    assert jobs.counts() == {"done": 100}
    for job in jobs.list():
        assert job.body.key.selector in (ANY_DEVICE, job.message)
