"""Holds the machine against its published records, and enqueues what no longer matches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from registry.environment import Environment
from registry.errors import (
    InvalidInput,
    RecordNotFound,
    RegistryCorrupt,
    RegistryError,
    RegistryTooNew,
    TrialFailed,
)
from registry.jobs import Job
from registry.record import TuningRecord
from registry.store import Registry
from tuner.clock import Clock
from tuner.daemon.drift import Drifted, Origin, drifted
from tuner.daemon.logs import say, warn

MANY_JOBS = 10_000


class Watcher:
    """`described` gives an interpreter's environment on this device, detected afresh; raises
    TrialFailed and InvalidInput. `interpreters` are watched beside this one's, and so are those
    that jobs name. `selector` names the device in the jobs it enqueues."""

    def __init__(
        self,
        registry: Registry,
        described: Callable[[str], Environment],
        interpreters: Callable[[], Sequence[str]],
        selector: str,
        clock: Clock,
    ) -> None:
        self._registry, self._described, self._clock = registry, described, clock
        self._interpreters, self._selector = interpreters, selector
        self._unable: dict[str, str] = {}
        self._has_ended = False

    def end(self) -> None:
        """From any thread and from a signal handler: a look under way asks no further interpreter,
        and enqueues nothing."""
        self._has_ended = True

    def look(self) -> None:
        """One tick. What cannot be looked at now is said, and looked at again at the next."""
        try:
            jobs = self._registry.jobs.list(limit=MANY_JOBS)
            environments = self._environments(jobs)
            if environments and not self._has_ended:
                self._enqueue(jobs, environments)
        except RegistryError as error:
            warn("drift not looked for", why=error.message)

    def _environments(self, jobs: Sequence[Job]) -> dict[str | None, Environment]:
        named = (job.body.key.python for job in jobs)
        pythons = [None, *dict.fromkeys([*self._interpreters(), *(p for p in named if p)])]
        found = ((python, self._environment(python)) for python in pythons)
        return {python: environment for python, environment in found if environment is not None}

    def _environment(self, python: str | None) -> Environment | None:
        """What is wrong with an interpreter is said once, until it changes."""
        if self._has_ended:
            return None
        path = python or sys.executable
        try:
            environment = self._described(path)
        except (InvalidInput, TrialFailed) as error:
            if self._unable.get(path) != error.message:
                warn("interpreter not watched", python=path, why=str(error))
            self._unable[path] = error.message
            return None
        self._unable.pop(path, None)
        return environment

    def _enqueue(self, jobs: Sequence[Job], environments: dict[str | None, Environment]) -> None:
        by_study = {job.study_id: job for job in jobs if job.study_id is not None}
        tried = {
            (job.body.key.digest, job.body.environment) for job in jobs if job.ended_at is not None
        }
        records = self._registry.candidates()
        for item in drifted(
            records, environments, lambda record: self._origin(record, by_study), self._selector
        ):
            if (item.body.key.digest, item.body.environment) not in tried:
                self._ask(item)

    def _ask(self, item: Drifted) -> None:
        """A damaged job of the same question keeps no other question from being asked."""
        now = self._clock.now()
        try:
            job, is_new = self._registry.jobs.enqueue(item.body, priority=item.priority, now=now)
        except (RegistryCorrupt, RegistryTooNew) as error:
            warn("drift not enqueued", model=item.body.key.ref.name, why=str(error))
            return
        if is_new:
            changed, fetches = "; ".join(item.changes), item.fetches
            say("drift", job=job.id, model=job.body.key.ref.name, changed=changed, fetches=fetches)

    def _origin(self, record: TuningRecord, by_study: Mapping[str, Job]) -> Origin:
        """By the job that the study answered, where there was one; by the study's own request."""
        job = by_study.get(record.study)
        if job is not None:
            body = job.body
            return Origin(body.key.python, body.key.model, body.steps, body.time_limit_s)
        try:
            steps = self._registry.study(record.study).request.get("steps")
        except RecordNotFound:
            steps = None
        return Origin(steps=steps if isinstance(steps, int) else None)
