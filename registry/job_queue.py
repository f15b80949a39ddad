"""The queue of tuning jobs as its users see it: each method is one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from registry import jobs, leases
from registry.database import WRITE_WAIT_S, Database
from registry.jobs import Job, JobBody, JobStatus
from registry.leases import Lease, Sighting


class JobQueue:
    """Times are given by the caller and must have a zone. Every method raises RegistryError as
    `registry.store.Registry` does; with a lease also LeaseLost: then the job is somebody else's,
    or nobody's, and work at it has to stop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enqueue(
        self, body: JobBody, *, priority: int, now: datetime, wait_s: float = WRITE_WAIT_S
    ) -> tuple[Job, bool]:
        """The open job of this question, else a new one, and whether it is new. Waits at most
        `wait_s` for other writers."""
        with self._database.write(wait_s=wait_s) as connection:
            return jobs.enqueue(connection, body, priority, now)

    def get(self, job_id: int) -> Job:
        """Raises RecordNotFound."""
        with self._database.read() as connection:
            return jobs.get(connection, job_id)

    def list(
        self,
        *,
        statuses: Sequence[JobStatus] | None = None,
        key_digest: str | None = None,
        limit: int = 200,
    ) -> tuple[Job, ...]:
        """Newest first."""
        with self._database.read() as connection:
            return jobs.listed(connection, statuses, key_digest, limit)

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status that has any."""
        with self._database.read() as connection:
            return jobs.counts(connection)

    def cancel(self, job_id: int, *, now: datetime) -> None:
        """Raises RecordNotFound, InvalidInput for a job that has ended."""
        with self._database.write() as connection:
            jobs.cancel(connection, job_id, now)

    def pause(self, job_id: int | None = None, *, now: datetime) -> None:
        """One job, or all of the queue. Raises RecordNotFound, InvalidInput."""
        with self._database.write() as connection:
            if job_id is None:
                jobs.pause_all(connection, now)
            else:
                jobs.pause(connection, job_id)

    def resume(self, job_id: int | None = None, *, now: datetime) -> None:
        """One job, or the queue; jobs that are paused by themselves stay so. Raises RecordNotFound,
        InvalidInput."""
        with self._database.write() as connection:
            if job_id is None:
                jobs.resume_all(connection)
            else:
                jobs.resume(connection, job_id, now)

    def paused_since(self) -> datetime | None:
        """When the whole queue was paused; None where it is not."""
        with self._database.read() as connection:
            return jobs.paused_since(connection)

    def acquire(
        self, owner: str, selectors: Sequence[str], *, now: datetime, duration: timedelta
    ) -> Lease | None:
        """The most urgent job that one of `selectors` names, for this owner alone."""
        with self._database.write() as connection:
            return leases.acquire(connection, owner, selectors, now, duration)

    def extend(self, lease: Lease, *, now: datetime, duration: timedelta) -> None:
        """A heartbeat."""
        with self._database.write() as connection:
            leases.extend(connection, lease, now, duration)

    def note_study(self, lease: Lease, study_id: str) -> None:
        """Which study answers the job."""
        with self._database.write() as connection:
            leases.note_study(connection, lease, study_id)

    def finish(self, lease: Lease, *, message: str, now: datetime) -> Job:
        with self._database.write() as connection:
            return leases.finish(connection, lease, message, now)

    def fail(self, lease: Lease, *, message: str, now: datetime, is_final: bool = False) -> Job:
        """Tried again after a wait, unless `is_final` or too often failed."""
        with self._database.write() as connection:
            return leases.fail(connection, lease, message, now, is_final=is_final)

    def hand_back(
        self, lease: Lease, *, message: str, now: datetime, wait: timedelta = timedelta()
    ) -> Job:
        """Undone, no failure: to be taken again after `wait`."""
        with self._database.write() as connection:
            return leases.hand_back(connection, lease, message, now, wait)

    def sightings(self) -> tuple[Sighting, ...]:
        """Every running job, to be watched by a clock that cannot be set."""
        with self._database.read() as connection:
            return leases.sightings(connection)

    def reap(self, lost: Iterable[Sighting], *, now: datetime) -> tuple[Job, ...]:
        """Queue again those whose leases are still exactly as they were seen."""
        with self._database.write() as connection:
            return leases.reap(connection, lost, now)
