"""The daemon's loop: acquire a job, run it in a process, keep its lease, say what became of it.

One thread does all of it, woken by ticks, by the end of the job's process and by signals. What
fails for want of the registry is tried again at the next tick; no state is in memory alone but
which process is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from registry.errors import LeaseLost, RegistryCorrupt, RegistryError, RegistryTooNew
from registry.jobs import ANY_DEVICE
from registry.leases import Lease
from registry.store import Registry
from tuner.clock import Clock
from tuner.config import Settings
from tuner.daemon.config import DaemonConfig
from tuner.daemon.job_logs import job_log
from tuner.daemon.job_process import JobProcess, order_for
from tuner.daemon.lease_watch import LeaseWatch
from tuner.daemon.logs import say, warn
from tuner.daemon.owner import is_gone, own_name

START_WAIT = timedelta(minutes=1)
"""Before a job is tried again whose process could not be started, or could keep nothing."""


@dataclass(frozen=True)
class Post:
    """What a daemon serves: one device, by its key and by the kind it is of."""

    settings: Settings
    registry: Registry
    gpu: str
    device_key: str
    kind: str

    @property
    def selectors(self) -> tuple[str, ...]:
        return (ANY_DEVICE, self.device_key, self.kind)


@dataclass
class Working:
    """A job at work. `beat_s` is when its lease was last renewed, monotonic; `is_ending` once its
    process has given the lease up."""

    lease: Lease
    process: JobProcess
    beat_s: float = 0.0
    is_ending: bool = False

    @property
    def job_id(self) -> int:
        return self.lease.job.id


class Service:
    """`closed` says why no job may run now, None where one may, and is told whether one does;
    `wake` is called when a job's process ended."""

    def __init__(
        self,
        post: Post,
        config: DaemonConfig,
        clock: Clock,
        *,
        closed: Callable[[bool], str | None] = lambda _working: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._post, self._clock, self._closed, self._wake = post, clock, closed, wake
        self._queue = post.registry.jobs
        self._owner = own_name()
        self._watch = LeaseWatch(clock.monotonic_s, is_gone)
        self._working: Working | None = None
        self._why_closed: str | None = None
        self._trouble: str | None = None
        self._reaped_s: float | None = None

    @property
    def working(self) -> Working | None:
        return self._working

    @property
    def why_closed(self) -> str | None:
        """What kept the last step from beginning a job."""
        return self._why_closed

    @property
    def trouble(self) -> str | None:
        """Why the registry could not be used in the last step."""
        return self._trouble

    def step(self) -> bool:
        """What is due now; False where nothing can be done: no job waits or may run, or the
        registry cannot be used."""
        try:
            self._reap()
            is_busy = self._advance()
        except RegistryError as error:
            self._note_trouble(error.message)
            return False
        self._note_trouble(None)
        return is_busy

    def _advance(self) -> bool:
        if self._working is None:
            return self._begin()
        if self._working.process.exit_code is None:
            self._keep(self._working)
        else:
            self._settle(self._working)
        return True

    def _note_trouble(self, why: str | None) -> None:
        """Said once, until it changes: a step is a second."""
        if why is not None and why != self._trouble:
            warn("registry cannot be used", why=why)
        if why is None and self._trouble is not None:
            say("registry can be used again")
        self._trouble = why

    def stop(self, why: str) -> None:
        """End the job at work and hand it back."""
        working, self._working = self._working, None
        if working is None:
            return
        say("stopping job", job=working.job_id, why=why)
        working.process.stop()
        try:
            if self._is_ours(working.lease):
                now = self._clock.now()
                self._queue.hand_back(working.lease, message=why, now=now)
        except RegistryError as error:
            warn("job not handed back", job=working.job_id, why=error.message)

    def _begin(self) -> bool:
        if self._is_closed():
            return False
        lease = self._queue.acquire(
            self._owner, self._post.selectors, now=self._clock.now(), duration=self._duration
        )
        if lease is None:
            return False
        self._start(lease)
        return True

    def _reap(self) -> None:
        """Once a heartbeat, and at once at the start: a daemon before this one may have died."""
        now_s = self._clock.monotonic_s()
        if self._reaped_s is not None and now_s - self._reaped_s < self.config.heartbeat:
            return
        self._reaped_s = now_s
        lost = self._watch.lost(self._queue.sightings())
        for job in self._queue.reap(lost, now=self._clock.now()) if lost else ():
            warn("lease reaped", job=job.id, why=job.message)

    def _is_closed(self) -> bool:
        why = self._closed(False)
        if why != self._why_closed:
            say("waiting" if why else "going on", why=why or "nothing in the way")
        self._why_closed = why
        return why is not None

    def _start(self, lease: Lease) -> None:
        job = lease.job
        settings = self._post.settings
        order = order_for(settings.registry, self._post.gpu, job.id, lease.token, self.config.nice)
        try:
            log_path = job_log(settings, job.id)
            process = JobProcess(order, log_path, settings.environ, self._wake)
        except OSError as error:
            why = f"its process could not be started: {error}"
            warn("job not started", job=job.id, why=why)
            self._queue.hand_back(lease, message=why, now=self._clock.now(), wait=START_WAIT)
            return
        self._working = Working(lease, process, self._clock.monotonic_s())
        model, reason = job.body.key.ref.name, job.body.reason
        say("job started", job=job.id, model=model, reason=reason, attempt=job.attempts)

    def _keep(self, working: Working) -> None:
        """The heartbeat; a job that was cancelled, paused or taken away is stopped, as is one that
        may no longer run. A heartbeat that failed is due again at the next step."""
        if why := self._closed(True):
            self.stop(why)
            return
        now_s = self._clock.monotonic_s()
        if now_s - working.beat_s < self.config.heartbeat:
            return
        try:
            now = self._clock.now()
            self._queue.extend(working.lease, now=now, duration=self._duration)
            working.beat_s = now_s
        except LeaseLost as error:
            working.beat_s = now_s
            # Its own process may have just said how it ended, and not be gone yet.
            said_so = self._queue.get(working.job_id).token == working.lease.token
            if working.is_ending or not said_so:
                self.stop(error.message)
            working.is_ending = True

    def _settle(self, working: Working) -> None:
        """Say what became of it, where its process could not. A damaged job is left to the end of
        its lease, and keeps nobody from the next."""
        try:
            if self._is_ours(working.lease):
                self._give_up(working)
            job = self._queue.get(working.job_id)
            say("job ended", job=job.id, status=job.status, message=job.message)
        except (LeaseLost, RegistryCorrupt, RegistryTooNew) as error:
            warn("job left", job=working.job_id, why=error.message)
        self._working = None

    def _give_up(self, working: Working) -> None:
        """Not even its process could say how it ended. Where that was for want of the registry, it
        is no failure of the job."""
        code, log, now = working.process.exit_code, working.process.log_path, self._clock.now()
        why = f"its process ended with exit code {code}; see {log}"
        if code == RegistryError.exit_code:
            self._queue.hand_back(working.lease, message=why, now=now, wait=START_WAIT)
        else:
            self._queue.fail(working.lease, message=why, now=now)

    def _is_ours(self, lease: Lease) -> bool:
        job = self._queue.get(lease.job.id)
        return job.status == "running" and job.token == lease.token

    @property
    def _duration(self) -> timedelta:
        return timedelta(seconds=self.config.lease)
