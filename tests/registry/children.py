"""Processes that use a registry at the same moment, and what they do there.

They are forked from a small server that has the registry imported already: sixteen at once
start in a fraction of a second.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from registry.client import open_registry, upgrade_registry
from registry.errors import TunerError
from registry.jobs import ANY_DEVICE
from registry.schema import META
from registry.signing import ArtifactStatement, SigningKeys
from registry.sqlite_database import open_database
from registry.studies import StudyEnd
from registry.timing import TimingOutcome
from tests.registry import samples

TIMEOUT_S = 120.0
PYSQLITE3 = "pysqlite3.dbapi2"
LIMIT_BYTES_MARGIN = 8192
BATCH = 3
LEASE = timedelta(seconds=60)


def context() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.registry.children"])
    return server


def together(work: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Run one child for each tuple, all released at once; what they returned, in order. A child's
    TunerError is returned as its class name and message."""
    server, every, hidden = context(), list(arguments), hides_pysqlite3()
    barrier = server.Barrier(len(every))
    pipes, children = [], []
    for given in every:
        receiver, sender = server.Pipe(duplex=False)
        child = server.Process(target=_released, args=(barrier, sender, hidden, work, given))
        child.start()
        sender.close()
        pipes.append(receiver)
        children.append(child)
    answers = [_answer(pipe) for pipe in pipes]
    for child in children:
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
    return answers


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    return together(work, [arguments])[0]


def started(work: Callable[..., Any], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    """A child to be killed, and the pipe it may speak through (its first argument)."""
    server = context()
    receiver, sender = server.Pipe(duplex=False)
    child = server.Process(target=_alone, args=(sender, hides_pysqlite3(), work, arguments))
    child.start()
    sender.close()
    return child, receiver


def _alone(sender: Connection, hidden: bool, work: Callable[..., Any], given: Any) -> None:
    _hide_pysqlite3(hidden)
    work(sender, *given)


def hides_pysqlite3() -> bool:
    """Whether this test uses the SQLite that Python was built with; its children do then, too."""
    return sys.modules.get(PYSQLITE3, sys) is None


def _hide_pysqlite3(hidden: bool) -> None:
    if hidden:
        sys.modules[PYSQLITE3] = None  # type: ignore[assignment]


def _answer(pipe: Connection) -> Any:
    assert pipe.poll(TIMEOUT_S), "a child did not answer"
    return pipe.recv()


def _released(
    barrier: Any, sender: Connection, hidden: bool, work: Callable[..., Any], given: Any
) -> None:
    _hide_pysqlite3(hidden)
    barrier.wait(TIMEOUT_S)
    try:
        sender.send(work(*given))
    except TunerError as error:
        sender.send((type(error).__name__, error.message))


def open_new(path: Path) -> str | None:
    return open_database(path, create=True).schema_state().revision


def upgrade(path: Path | str) -> str | None:
    """The revision before."""
    return upgrade_registry(path)[0]


def increment(path: Path, times: int) -> None:
    """Read a number, then write one more, in one transaction: the way updates are lost."""
    database = open_database(path, create=False)
    for _ in range(times):
        with database.write() as connection:
            here = META.c.key == "counter"
            value = connection.scalar(select(META.c.value).where(here))
            if value is None:
                connection.execute(insert(META).values(key="counter", value="1"))
            else:
                connection.execute(update(META).where(here).values(value=str(int(value) + 1)))


def publish_one(path: Path | str, number: int) -> str:
    """The same artifact and the same key from everybody, another version from each."""
    registry = open_registry(path)
    artifact = registry.put_artifact("compile_cache", b"the same bytes" * 10_000)
    record = samples.record(minutes=number, study=f"{number:032x}", artifacts=(artifact,))
    return registry.publish([record], now=samples.NOW)[0]


def begin_study(path: Path | str) -> str:
    study = open_registry(path).begin_study(
        "the same", model=samples.MODEL, workload=samples.WORKLOAD,
        environment=samples.ENVIRONMENT, request={}, now=samples.NOW,
    )  # fmt: skip
    return study.id


def put_timings(path: Path, number: int, rows: int) -> int:
    """Of everybody the same keys and one of its own; every second process could not measure."""
    registry = open_registry(path)
    outcome: TimingOutcome = "measured" if number % 2 else "failed"
    put = [samples.timing(row, outcome, 1.0 + number) for row in range(1, rows + 1)]
    own = samples.timing(10_000 + number)
    moment = samples.later(number)
    return registry.put_timings([*put, own], now=moment, environment=samples.ENVIRONMENT).new


def acquire_job(path: Path, number: int) -> int | None:
    queue = open_registry(path).jobs
    lease = queue.acquire(str(number), (ANY_DEVICE,), now=samples.NOW, duration=LEASE)
    return None if lease is None else lease.job.id


def enqueue_job(path: Path | str) -> tuple[int, bool]:
    """Everybody asks the same."""
    job, is_new = open_registry(path).jobs.enqueue(samples.job(), priority=1, now=samples.NOW)
    return job.id, is_new


def work_until_empty(path: Path | str, owner: str, selectors: tuple[str, ...]) -> list[int]:
    """Acquire, renew and finish until nothing is left; the jobs done."""
    queue, done = open_registry(path).jobs, []
    while lease := queue.acquire(owner, selectors, now=samples.NOW, duration=LEASE):
        queue.extend(lease, now=samples.NOW, duration=LEASE)
        queue.finish(lease, message=owner, now=samples.NOW)
        done.append(lease.job.id)
    return done


def publish_for_ever(sender: Connection, path: Path, first: int) -> None:
    """Studies that end by publishing BATCH records with an artifact of their own, until killed."""
    registry = open_registry(path)
    sender.send("ready")
    for number in range(first, first + 100_000):
        study = registry.begin_study(
            str(number), model=samples.MODEL, workload=samples.WORKLOAD,
            environment=samples.ENVIRONMENT, request={}, now=samples.NOW,
        )  # fmt: skip
        artifact = registry.put_artifact("compile_cache", str(number).encode() * 20_000)
        records = [
            samples.record(study=study.id, threads=threads, artifacts=(artifact,))
            for threads in range(1, BATCH + 1)
        ]
        registry.publish(records, now=samples.NOW, end=StudyEnd(study.id, "finished", {}))


def publish_under_limit(path: Path, limit_bytes: int) -> str:
    """As on a full disk: no file of this process may grow beyond the limit."""
    registry = open_registry(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    records = [samples.record(threads=number) for number in range(2, 200)]
    return registry.publish(records, now=samples.NOW)[0]


def put_under_limit(path: Path, limit_bytes: int) -> str:
    registry = open_registry(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return registry.put_artifact("compile_cache", b"x" * (limit_bytes + 1)).sha256


def create_under_limit(path: Path, limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    open_registry(path)


def answers_when_read_only(path: Path) -> list[str]:
    """What a process without write permission gets: the answer, then one error for each write."""
    drop_privileges()
    registry = open_registry(path)
    (found,) = registry.candidates()
    registry.note_fetch(found.record.id, samples.NOW)
    said = [found.record.id]
    for write in (
        lambda: registry.publish([samples.record(minutes=1)], now=samples.NOW),
        lambda: registry.revoke(found.record.id, reason="bad", now=samples.NOW),
        lambda: registry.put_artifact("log", b"said the worker"),
    ):
        try:
            write()
        except TunerError as error:
            said.append(type(error).__name__)
    return said


def answers_under_limit(path: Path, limit_bytes: int) -> list[str]:
    """As on a full disk: what was published is still found."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    registry = open_registry(path, create=False)
    (found,) = registry.candidates()
    registry.note_fetch(found.record.id, samples.NOW)
    return [registry.record(found.record.id).record.id]


def create_when_read_only(path: Path) -> None:
    drop_privileges()
    open_registry(path)


def drop_privileges() -> None:
    """Give up root's right to write where the permissions forbid it, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def sign(directory: Path) -> str:
    statement = ArtifactStatement(kind="log", size_bytes=0, sha256="0" * 64, record_key="0" * 64)
    return SigningKeys(directory).sign(statement).key_id
