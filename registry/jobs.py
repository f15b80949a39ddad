"""Tuning jobs: what daemons shall do, what became of it, and how people steer it.

A job outlives every process. At most one job of a key is open (queued, running or paused); one that
ended stays as history. Leases are in `registry.leases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field
from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, select, update

from registry.base import Frozen
from registry.digest import digest
from registry.errors import InvalidInput, RecordNotFound
from registry.record import Objective, Policy
from registry.rows import (
    AnyRow,
    check_columns,
    corrupt,
    from_time,
    parsed,
    readable,
    sealed,
    to_time,
)
from registry.schema import JOBS, META
from registry.workload import ModelRef, Workload

JobStatus = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
JobReason = Literal["asked", "drift", "miss"]
"""Why there is a job: a user enqueued it, a published plan no longer matches the machine, or
`get-plan` had nothing proved to answer."""

OPEN: tuple[JobStatus, ...] = ("queued", "running", "paused")
ANY_DEVICE = ""
"""The selector of a job that any daemon may take."""
PAUSED_KEY = "jobs_paused_at"
FREE: dict[str, Any] = {"acquired_by": None, "acquired_until": None}
UNDONE: dict[str, Any] = {"attempts": JOBS.c.attempts - 1}
"""Of a running job that is stopped at a wish: as if it had not been acquired."""


class JobKey(Frozen):
    """The question of a job. `model` is what the user typed: of a local folder the absolute path.

    `python` is the interpreter that shall run the trials, None the daemon's own. `selector` says
    who may take the job: a device's key ("cpu" or a GPU's UUID), the name of a kind of them, or
    ANY_DEVICE.
    """

    model: str
    ref: ModelRef
    workload: Workload
    budget_bytes: int = Field(gt=0)
    host_budget_bytes: int | None = None
    policy: Policy = "balanced"
    objective: Objective = "latency"
    python: str | None = None
    selector: str = ANY_DEVICE

    @property
    def digest(self) -> str:
        return digest(self)


class JobBody(Frozen):
    """What was enqueued. `first` are ids of records whose plans are measured before all others, the
    best first; `environment` is the digest of the one whose appearance led to the job."""

    model_config = ConfigDict(defer_build=True)

    key: JobKey
    reason: JobReason = "asked"
    steps: int | None = None
    time_limit_s: float | None = None
    first: tuple[str, ...] = ()
    environment: str | None = None


class Job(Frozen):
    """A job and how it stands. `attempts` counts how often it was acquired and not handed back,
    `failures` how often it failed; `message` is of the last end. Times are UTC."""

    model_config = ConfigDict(defer_build=True)

    id: int
    body: JobBody
    status: JobStatus
    priority: int
    attempts: int
    failures: int
    enqueued_at: datetime
    available_at: datetime
    ended_at: datetime | None = None
    acquired_by: str | None = None
    acquired_until: datetime | None = None
    token: int
    renewals: int
    study_id: str | None = None
    message: str | None = None


def enqueue(
    connection: Connection, body: JobBody, priority: int, now: datetime
) -> tuple[Job, bool]:
    """The open job of this key, else a new one, and whether it is new. The higher priority of the
    two stays; what else the open job was asked stays as it is. Raises RegistryCorrupt where the
    open job is damaged."""
    key_digest = body.key.digest
    is_open = (JOBS.c.key_digest == key_digest, JOBS.c.status.in_(OPEN))
    job_id = connection.scalar(select(JOBS.c.id).where(*is_open))
    if job_id is not None:
        raised = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.priority < priority)
        connection.execute(raised.values(priority=priority))
        return get(connection, job_id), False
    values = {**derived_columns(body), **sealed(body), "priority": priority, "status": "queued"}
    values |= {"enqueued_at": to_time(now), "available_at": to_time(now)}
    values |= dict.fromkeys(("attempts", "failures", "token", "renewals", "lease_s"), 0)
    job_id = connection.execute(insert(JOBS).values(**values).returning(JOBS.c.id)).scalar_one()
    return get(connection, job_id), True


def derived_columns(body: JobBody) -> dict[str, Any]:
    key = body.key
    return {
        "key_digest": key.digest,
        "reason": body.reason,
        "model_name": key.ref.name,
        "selector": key.selector,
    }


def get(connection: Connection, job_id: int) -> Job:
    """Raises RecordNotFound, RegistryCorrupt."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    if row is None:
        raise _no_job(job_id)
    return job_of(row)


def listed(
    connection: Connection,
    statuses: Sequence[JobStatus] | None,
    key_digest: str | None,
    limit: int,
) -> tuple[Job, ...]:
    """Newest first; a damaged one is left out with a warning in the log."""
    query: Select[Any] = select(JOBS).order_by(JOBS.c.id.desc()).limit(limit)
    if statuses is not None:
        query = query.where(JOBS.c.status.in_(statuses))
    if key_digest is not None:
        query = query.where(JOBS.c.key_digest == key_digest)
    return readable(connection.execute(query), job_of)


def counts(connection: Connection) -> dict[str, int]:
    """How many jobs there are of each status that has any."""
    query = select(JOBS.c.status, func.count()).group_by(JOBS.c.status)
    return {row[0]: row[1] for row in connection.execute(query)}


def job_of(row: AnyRow) -> Job:
    """Raises RegistryCorrupt naming the job."""
    what = f"job {row.id}"
    body = parsed(JobBody, row, what)
    check_columns(row, derived_columns(body), what)
    times = {
        name: None if getattr(row, name) is None else from_time(getattr(row, name), what)
        for name in ("enqueued_at", "available_at", "ended_at", "acquired_until")
    }
    same = ("id", "status", "priority", "attempts", "failures", "acquired_by", "token", "renewals")
    plain = {name: getattr(row, name) for name in (*same, "study_id", "message")}
    try:
        return Job.model_validate({"body": body, **plain, **times})
    except ValueError as error:
        raise corrupt(what, "its status, owner or counters cannot be read") from error


def cancel(connection: Connection, job_id: int, now: datetime) -> None:
    """End an open job, also a damaged one. A daemon that is at it meets LeaseLost and stops. Raises
    RecordNotFound, InvalidInput for a job that has ended already otherwise."""
    if _status(connection, job_id) == "cancelled":
        return
    _open_status(connection, job_id, "cancelled")
    ended = {"status": "cancelled", "ended_at": to_time(now), "message": "cancelled by the user"}
    _take_away(connection, JOBS.c.id == job_id, ended)


def pause(connection: Connection, job_id: int) -> None:
    """Keep an open job from being worked on until `resume`; its finished trials stay, and it is no
    attempt of the job that it was stopped. Raises as `cancel` does."""
    status = _open_status(connection, job_id, "paused")
    if status == "running":
        _take_away(connection, JOBS.c.id == job_id, {"status": "paused", **UNDONE})
    elif status == "queued":
        _take_away(connection, JOBS.c.id == job_id, {"status": "paused"})


def resume(connection: Connection, job_id: int, now: datetime) -> None:
    """Queue a paused job again, or one that waits after a failure at once. Raises as `cancel`
    does."""
    if _open_status(connection, job_id, "resumed") != "running":
        queued = {"status": "queued", "available_at": to_time(now)}
        _take_away(connection, JOBS.c.id == job_id, queued)


def _take_away(connection: Connection, which: ColumnElement[bool], values: dict[str, Any]) -> None:
    changed = {**values, **FREE, "token": JOBS.c.token + 1}
    connection.execute(update(JOBS).where(which).values(**changed))


def _open_status(connection: Connection, job_id: int, wanted: str) -> str:
    status = _status(connection, job_id)
    if status not in OPEN:
        raise InvalidInput(
            f"job {job_id} is {status}: it cannot be {wanted}",
            hint="`tuner enqueue` asks for the same again.",
        )
    return status


def _status(connection: Connection, job_id: int) -> str:
    """Of its row alone: a damaged job can be steered too. Raises RecordNotFound."""
    status: str | None = connection.scalar(select(JOBS.c.status).where(JOBS.c.id == job_id))
    if status is None:
        raise _no_job(job_id)
    return status


def _no_job(job_id: int) -> RecordNotFound:
    return RecordNotFound(f"there is no job {job_id}", hint="`tuner status` lists them.")


def pause_all(connection: Connection, now: datetime) -> None:
    """No job is given out until `resume_all`; running ones are taken away."""
    connection.execute(delete(META).where(META.c.key == PAUSED_KEY))
    connection.execute(insert(META).values(key=PAUSED_KEY, value=to_time(now)))
    _take_away(connection, JOBS.c.status == "running", {"status": "queued", **UNDONE})


def resume_all(connection: Connection) -> None:
    connection.execute(delete(META).where(META.c.key == PAUSED_KEY))


def paused_since(connection: Connection) -> datetime | None:
    """When the whole queue was paused; None where it is not."""
    value = connection.scalar(select(META.c.value).where(META.c.key == PAUSED_KEY))
    return None if value is None else from_time(value, "the queue's pause")
