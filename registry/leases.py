"""Who works at a job: acquired by one process at a time, kept by heartbeats, taken back when lost.

Two things keep a job from being lost or done twice, whatever the wall clock does:

- Each acquisition has a *fencing token*. Whoever comes back with an older one is refused.
- A lease is not ended by the wall clock of somebody else, which may have been set by a day. Who
  would reap it watches `renewals` by a clock of his own that cannot be set, and `reap` takes the
  lease away only if it is still exactly the one that was watched. `acquired_until` is for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from registry.errors import LeaseLost, RecordNotFound
from registry.jobs import FREE, Job, get, job_of, paused_since
from registry.rows import AnyRow, readable, to_time
from registry.schema import JOBS, STUDIES

MAX_FAILURES = 5
LOSSES_AT_ONCE = 3
"""How often a job is queued again at once when who worked at it is gone."""
FIRST_BACK_OFF = timedelta(minutes=1)
LONGEST_BACK_OFF = timedelta(hours=6)


@dataclass(frozen=True)
class Lease:
    """The right to work at a job: what `acquire` gives, and every later call asks for."""

    job: Job
    token: int


@dataclass(frozen=True)
class Sighting:
    """A running job as it was seen: `renewals` stands still where nobody keeps the lease, which
    lasts `lease_s` without one, as its owner has said."""

    job_id: int
    token: int
    renewals: int
    owner: str
    lease_s: float


def acquire(
    connection: Connection,
    owner: str,
    selectors: Sequence[str],
    now: datetime,
    duration: timedelta,
) -> Lease | None:
    """The most urgent job for any of `selectors`, from now on `owner`'s; None where there is none.

    Of equal priority the one that was tried less often comes first: a job that takes every daemon
    down with it does not keep others waiting.
    """
    if paused_since(connection) is not None:
        return None
    # A time further away than the longest wait was written before the clock was set back.
    due = or_(
        JOBS.c.available_at <= to_time(now),
        JOBS.c.available_at > to_time(now + LONGEST_BACK_OFF),
    )
    query = (
        select(JOBS)
        .where(JOBS.c.status == "queued", JOBS.c.selector.in_(selectors), due)
        .order_by(JOBS.c.priority.desc(), JOBS.c.attempts, JOBS.c.id)
    )
    job = _first_readable(connection.execute(query))
    if job is None:
        return None
    token = job.token + 1
    values = {"status": "running", "acquired_by": owner, "token": token, "renewals": 0}
    values |= {"attempts": JOBS.c.attempts + 1, **_lasting(now, duration)}
    connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(**values))
    return Lease(get(connection, job.id), token)


def _first_readable(rows: Iterable[AnyRow]) -> Job | None:
    """A damaged job, or one that another release wrote, must not keep the others waiting."""
    for row in rows:
        if found := readable([row], job_of):
            return found[0]
    return None


def extend(connection: Connection, lease: Lease, now: datetime, duration: timedelta) -> None:
    """A heartbeat. Raises LeaseLost."""
    values = {"renewals": JOBS.c.renewals + 1, **_lasting(now, duration)}
    _change(connection, lease, values)


def _lasting(now: datetime, duration: timedelta) -> dict[str, Any]:
    return {"acquired_until": to_time(now + duration), "lease_s": duration.total_seconds()}


def require(connection: Connection, lease: Lease) -> None:
    """For a write that is part of the work at a job: within the same transaction, so that nobody
    can take the job away in between. Raises LeaseLost."""
    if connection.scalar(select(JOBS.c.id).where(*_held(lease))) is None:
        raise _lost(connection, lease)


def note_study(connection: Connection, lease: Lease, study_id: str) -> None:
    """The study that answers this job: where it is finished the job is done, whoever died in
    between. Raises LeaseLost, RecordNotFound."""
    if connection.scalar(select(STUDIES.c.id).where(STUDIES.c.id == study_id)) is None:
        raise RecordNotFound(f"there is no study {study_id}")
    _change(connection, lease, {"study_id": study_id})


def finish(connection: Connection, lease: Lease, message: str, now: datetime) -> Job:
    """Done. Raises LeaseLost."""
    return _end(connection, lease, {"status": "done", "message": message}, now)


def fail(
    connection: Connection, lease: Lease, message: str, now: datetime, *, is_final: bool = False
) -> Job:
    """Queued again after a wait that doubles, up to MAX_FAILURES times; `is_final` for what no
    repetition can mend. Raises LeaseLost."""
    failures = lease.job.failures + 1
    values: dict[str, Any] = {"message": message, "failures": failures}
    if is_final or failures >= MAX_FAILURES:
        return _end(connection, lease, {**values, "status": "failed"}, now)
    later = to_time(now + back_off(failures))
    return _change(connection, lease, {**values, "status": "queued", "available_at": later, **FREE})


def hand_back(
    connection: Connection, lease: Lease, message: str, now: datetime, wait: timedelta
) -> Job:
    """Queued again as if it had not been acquired, to be taken no sooner than after `wait`. Raises
    LeaseLost."""
    values = {"status": "queued", "message": message, "attempts": lease.job.attempts - 1}
    return _change(connection, lease, {**values, "available_at": to_time(now + wait), **FREE})


def sightings(connection: Connection) -> tuple[Sighting, ...]:
    """Every running job, to be watched."""
    columns = (JOBS.c.id, JOBS.c.token, JOBS.c.renewals, JOBS.c.acquired_by, JOBS.c.lease_s)
    query = select(*columns).where(JOBS.c.status == "running").order_by(JOBS.c.id)
    return tuple(Sighting(*row) for row in connection.execute(query))


def reap(connection: Connection, lost: Iterable[Sighting], now: datetime) -> tuple[Job, ...]:
    """Queue the jobs again whose leases are still exactly as they were seen. A job that was lost
    time and again rests before the next: it may be what kills the daemon, or the whole machine. A
    damaged job is queued too, and left out of the answer."""
    reaped = []
    for seen in lost:
        unchanged = (
            JOBS.c.id == seen.job_id,
            JOBS.c.status == "running",
            JOBS.c.token == seen.token,
            JOBS.c.renewals == seen.renewals,
        )
        later = to_time(now + _rest(connection, seen.job_id))
        values = {"status": "queued", "token": seen.token + 1, "available_at": later, **FREE}
        values["message"] = f"the process that worked at it is gone ({seen.owner})"
        if connection.execute(update(JOBS).where(*unchanged).values(**values)).rowcount:
            reaped.append(seen.job_id)
    return readable(connection.execute(select(JOBS).where(JOBS.c.id.in_(reaped))), job_of)


def _rest(connection: Connection, job_id: int) -> timedelta:
    """What was acquired, and neither handed back nor failed, was lost."""
    lost = JOBS.c.attempts - JOBS.c.failures
    times = connection.scalar(select(lost).where(JOBS.c.id == job_id)) or 0
    return back_off(times - LOSSES_AT_ONCE) if times > LOSSES_AT_ONCE else timedelta()


def back_off(failures: int) -> timedelta:
    """How long a job rests after its n-th failure."""
    doubled: timedelta = FIRST_BACK_OFF * 2 ** min(failures - 1, 20)
    return min(doubled, LONGEST_BACK_OFF)


def _end(connection: Connection, lease: Lease, values: dict[str, Any], now: datetime) -> Job:
    return _change(connection, lease, {**values, "ended_at": to_time(now), **FREE})


def _change(connection: Connection, lease: Lease, values: dict[str, Any]) -> Job:
    if not connection.execute(update(JOBS).where(*_held(lease)).values(**values)).rowcount:
        raise _lost(connection, lease)
    return get(connection, lease.job.id)


def _held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (
        JOBS.c.id == lease.job.id,
        JOBS.c.token == lease.token,
        JOBS.c.status == "running",
    )


def _lost(connection: Connection, lease: Lease) -> LeaseLost:
    job = get(connection, lease.job.id)
    where = f" by {job.acquired_by}" if job.acquired_by else ""
    return LeaseLost(
        f"job {job.id} is no longer ours (token {lease.token}): it is {job.status}{where}"
    )
