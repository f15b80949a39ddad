"""What every registry's queue of tuning jobs must do."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from registry.errors import InvalidInput, LeaseLost, RecordNotFound
from registry.job_queue import JobQueue
from registry.jobs import ANY_DEVICE, Job
from registry.leases import LONGEST_BACK_OFF, LOSSES_AT_ONCE, MAX_FAILURES, Lease, back_off
from registry.store import Registry
from tests.registry import samples
from tests.registry.conformance import begin
from tests.registry.samples import NOW, later

DURATION = timedelta(seconds=60)
DAY_MINUTES = 24 * 60


def enqueue(jobs: JobQueue, number: int = 0, priority: int = 0, selector: str = ANY_DEVICE) -> Job:
    body = samples.job(10**9 + number, selector=selector)
    return jobs.enqueue(body, priority=priority, now=NOW)[0]


def acquire(jobs: JobQueue, *selectors: str, at: datetime = NOW, owner: str = "a") -> Lease | None:
    return jobs.acquire(owner, (ANY_DEVICE, *selectors), now=at, duration=DURATION)


def held(jobs: JobQueue, *, at: datetime = NOW, owner: str = "a") -> Lease:
    lease = acquire(jobs, at=at, owner=owner)
    assert lease is not None
    return lease


class JobConformance:
    """Each test begins with an empty registry."""

    @pytest.fixture
    def jobs(self, registry: Registry) -> JobQueue:
        return registry.jobs

    # Asking

    def test_a_job_keeps_what_it_was_asked(self, jobs: JobQueue) -> None:
        body = samples.job(
            reason="drift", first=("c" * 64,), time_limit_s=60.5, environment="d" * 64
        )
        job, is_new = jobs.enqueue(body, priority=7, now=NOW)
        assert is_new
        assert (job.body, job.status, job.priority, job.enqueued_at) == (body, "queued", 7, NOW)
        assert jobs.get(job.id) == job
        assert jobs.list(key_digest=body.key.digest) == (job,)

    def test_an_open_job_is_not_asked_for_twice(self, jobs: JobQueue) -> None:
        first = enqueue(jobs, priority=5)
        again, is_new = jobs.enqueue(samples.job(10**9), priority=9, now=later(1))
        assert (again.id, again.priority, is_new) == (first.id, 9, False)
        assert jobs.enqueue(samples.job(10**9), priority=2, now=later(1))[0].priority == 9
        assert enqueue(jobs, number=1).id != first.id

    def test_after_its_end_it_may_be_asked_for_again(self, jobs: JobQueue) -> None:
        first = enqueue(jobs)
        jobs.finish(held(jobs), message="published 2", now=later(1))
        second, is_new = jobs.enqueue(samples.job(10**9), priority=0, now=later(2))
        assert is_new
        assert second.id != first.id
        assert [job.status for job in jobs.list()] == ["queued", "done"]
        assert [job.id for job in jobs.list(statuses=("done",))] == [first.id]
        assert jobs.counts() == {"queued": 1, "done": 1}

    def test_an_unknown_job(self, jobs: JobQueue) -> None:
        for call in (jobs.get, lambda number: jobs.cancel(number, now=NOW)):
            with pytest.raises(RecordNotFound, match="no job 99"):
                call(99)

    # Acquiring

    def test_the_most_urgent_comes_first(self, jobs: JobQueue) -> None:
        low, high, same = (enqueue(jobs, number, (0, 9, 9)[number]) for number in range(3))
        assert [held(jobs).job.id for _ in range(3)] == [high.id, same.id, low.id]
        assert acquire(jobs) is None

    def test_what_was_tried_less_often_comes_before_what_was_lost(self, jobs: JobQueue) -> None:
        poison, other = enqueue(jobs, 0), enqueue(jobs, 1)
        held(jobs)
        jobs.reap(jobs.sightings(), now=NOW)
        assert [held(jobs).job.id for _ in range(2)] == [other.id, poison.id]

    def test_a_job_is_given_to_whom_its_selector_names(self, jobs: JobQueue) -> None:
        here = enqueue(jobs, 0, selector="GPU-1")
        assert acquire(jobs, "GPU-2") is None
        lease = acquire(jobs, "GPU-2", "GPU-1")
        assert lease is not None
        assert lease.job.id == here.id

    def test_an_acquired_job_shows_its_owner(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease = held(jobs, owner="me")
        job = jobs.get(lease.job.id)
        assert (job.status, job.acquired_by, job.attempts) == ("running", "me", 1)
        assert job.acquired_until == NOW + DURATION
        jobs.extend(lease, now=later(5), duration=DURATION)
        job = jobs.get(lease.job.id)
        assert (job.acquired_until, job.renewals) == (later(5) + DURATION, 1)

    # Ending

    def test_a_finished_job_is_done(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        job = jobs.finish(held(jobs), message="published 3", now=later(9))
        assert (job.status, job.message, job.ended_at) == ("done", "published 3", later(9))
        assert job.acquired_by is None
        assert acquire(jobs, at=later(99)) is None

    def test_a_failure_waits_longer_each_time_and_then_is_the_end(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        now = NOW
        for number in range(1, MAX_FAILURES):
            job = jobs.fail(held(jobs, at=now), message=f"failure {number}", now=now)
            assert (job.status, job.failures) == ("queued", number)
            assert job.available_at == now + back_off(number)
            assert acquire(jobs, at=job.available_at - timedelta(seconds=1)) is None
            now = job.available_at
        assert jobs.fail(held(jobs, at=now), message="the last", now=now).status == "failed"
        assert back_off(3) == 2 * back_off(2)
        assert back_off(50) == LONGEST_BACK_OFF

    def test_a_final_failure_is_not_repeated(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        job = jobs.fail(held(jobs), message="no such model", now=NOW, is_final=True)
        assert (job.status, job.ended_at) == ("failed", NOW)

    def test_a_job_handed_back_is_as_before(self, jobs: JobQueue) -> None:
        before = enqueue(jobs)
        job = jobs.hand_back(held(jobs), message="busy", now=NOW, wait=timedelta(minutes=5))
        assert (job.status, job.attempts, job.failures) == ("queued", 0, 0)
        assert acquire(jobs, at=later(4)) is None
        assert held(jobs, at=later(5)).job.id == before.id

    def test_its_study_is_noted(self, registry: Registry, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease, study = held(jobs), begin(registry)
        jobs.note_study(lease, study.id)
        assert jobs.get(lease.job.id).study_id == study.id
        with pytest.raises(RecordNotFound):
            jobs.note_study(lease, "f" * 32)

    def test_only_who_holds_the_lease_publishes(self, registry: Registry, jobs: JobQueue) -> None:
        enqueue(jobs)
        lost = held(jobs)
        jobs.reap(jobs.sightings(), now=later(1))
        with pytest.raises(LeaseLost, match="is queued"):
            registry.publish([samples.record()], now=later(1), lease=lost)
        assert registry.history() == ()
        registry.publish([samples.record()], now=later(2), lease=held(jobs, at=later(2)))
        assert len(registry.history()) == 1

    # Leases that are lost

    def test_a_lease_that_nobody_renews_is_reaped(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        old = held(jobs)
        seen = jobs.sightings()
        (job,) = jobs.reap(seen, now=later(2))
        assert (job.status, job.acquired_by) == ("queued", None)
        assert "gone (a)" in (job.message or "")
        new = held(jobs, at=later(2), owner="b")
        for late in (
            lambda: jobs.extend(old, now=later(3), duration=DURATION),
            lambda: jobs.finish(old, message="late", now=later(3)),
            lambda: jobs.fail(old, message="late", now=later(3)),
            lambda: jobs.hand_back(old, message="late", now=later(3)),
        ):
            with pytest.raises(LeaseLost, match="running by b"):
                late()
        jobs.finish(new, message="once", now=later(4))
        assert jobs.get(new.job.id).message == "once"

    def test_a_sighting_says_how_long_the_lease_lasts(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease = held(jobs)
        assert [seen.lease_s for seen in jobs.sightings()] == [DURATION.total_seconds()]
        jobs.extend(lease, now=later(1), duration=5 * DURATION)
        assert [seen.lease_s for seen in jobs.sightings()] == [5 * DURATION.total_seconds()]

    def test_a_renewed_lease_is_not_reaped(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease = held(jobs)
        seen = jobs.sightings()
        jobs.extend(lease, now=later(1), duration=DURATION)
        assert jobs.reap(seen, now=later(2)) == ()
        assert jobs.get(lease.job.id).status == "running"

    def test_a_job_that_is_lost_time_and_again_rests(self, jobs: JobQueue) -> None:
        """Perhaps it takes down every daemon that works at it."""
        enqueue(jobs)
        jobs.fail(held(jobs), message="once", now=NOW)
        now = later(1)
        for _ in range(LOSSES_AT_ONCE):
            held(jobs, at=now)
            (job,) = jobs.reap(jobs.sightings(), now=now)
            assert job.available_at == now
        for number in range(1, 4):
            held(jobs, at=now)
            (job,) = jobs.reap(jobs.sightings(), now=now)
            assert (job.status, job.available_at) == ("queued", now + back_off(number))
            now = job.available_at

    def test_a_lease_is_reaped_once(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        held(jobs)
        seen = jobs.sightings()
        assert len(jobs.reap(seen, now=later(1))) == 1
        held(jobs, at=later(1))
        assert jobs.reap(seen, now=later(2)) == ()

    @pytest.mark.parametrize("step_minutes", [-DAY_MINUTES, DAY_MINUTES])
    def test_a_clock_set_by_a_day_loses_no_job(self, jobs: JobQueue, step_minutes: float) -> None:
        """Neither one that waits nor one that is worked at, nor is one given out twice."""
        for number in range(2):
            enqueue(jobs, number)
        waiting = jobs.fail(held(jobs), message="once", now=NOW)
        working = held(jobs)
        set_to = later(step_minutes)
        found = acquire(jobs, at=set_to, owner="b")
        assert found is not None
        assert found.job.id == waiting.id
        assert acquire(jobs, at=set_to, owner="c") is None
        jobs.extend(working, now=set_to, duration=DURATION)
        for lease in (working, found):
            jobs.finish(lease, message="done", now=set_to)
        assert jobs.counts() == {"done": 2}

    # Steering

    def test_a_cancelled_job_is_taken_from_its_owner(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease = held(jobs)
        jobs.cancel(lease.job.id, now=later(1))
        with pytest.raises(LeaseLost, match="cancelled"):
            jobs.extend(lease, now=later(2), duration=DURATION)
        jobs.cancel(lease.job.id, now=later(3))
        job = jobs.get(lease.job.id)
        assert (job.status, job.ended_at, job.acquired_by) == ("cancelled", later(1), None)
        assert acquire(jobs) is None

    def test_a_job_that_ended_cannot_be_steered(self, jobs: JobQueue) -> None:
        job = enqueue(jobs)
        jobs.finish(held(jobs), message="", now=NOW)
        for steer in (jobs.cancel, jobs.pause, jobs.resume):
            with pytest.raises(InvalidInput, match=f"job {job.id} is done"):
                steer(job.id, now=NOW)

    def test_a_paused_job_waits_for_its_resumption(self, jobs: JobQueue) -> None:
        job, other = enqueue(jobs, 0), enqueue(jobs, 1)
        lease = held(jobs)
        jobs.pause(job.id, now=NOW)
        with pytest.raises(LeaseLost, match="paused"):
            jobs.extend(lease, now=NOW, duration=DURATION)
        assert held(jobs).job.id == other.id
        assert acquire(jobs) is None
        jobs.resume(job.id, now=NOW)
        lease = held(jobs)
        assert (lease.job.id, lease.job.attempts) == (job.id, 1), "stopped at a wish is no attempt"

    def test_resuming_ends_the_wait_after_a_failure(self, jobs: JobQueue) -> None:
        job = enqueue(jobs)
        jobs.fail(held(jobs), message="once", now=NOW)
        jobs.resume(job.id, now=NOW)
        assert held(jobs).job.failures == 1

    def test_a_paused_queue_gives_nothing_out(self, jobs: JobQueue) -> None:
        enqueue(jobs)
        lease = held(jobs)
        jobs.pause(now=later(1))
        jobs.pause(now=later(1))
        assert jobs.paused_since() == later(1)
        with pytest.raises(LeaseLost):
            jobs.extend(lease, now=later(2), duration=DURATION)
        assert acquire(jobs, at=later(2)) is None
        jobs.resume(now=later(3))
        assert jobs.paused_since() is None
        again = held(jobs, at=later(3))
        assert (again.job.id, again.job.attempts) == (lease.job.id, 1)
