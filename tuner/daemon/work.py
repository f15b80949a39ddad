"""`python -m tuner.daemon.work`: one job in a process that can be killed, as `tuner run` does it.

Reads a `WorkOrder` on standard input. What becomes of the job it writes into the registry itself,
under the lease it was given: a process that lost the lease changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from registry.client import open_registry
from registry.digest import short
from registry.errors import (
    DeviceBusy,
    Interrupted,
    InvalidInput,
    LeaseLost,
    RegistryError,
    TunerError,
)
from registry.jobs import JobBody
from registry.leases import Lease
from registry.record import TuningRecord
from registry.store import Registry
from registry.workload import Workload
from tuner.clock import Clock, SystemClock
from tuner.config import Settings, load_settings
from tuner.daemon.answered import answered_meanwhile
from tuner.daemon.order import WorkOrder
from tuner.daemon.trust import refuse_foreign
from tuner.events import StudyEvent, StudyStarted
from tuner.matching import environment_changes
from tuner.models import resolve_model
from tuner.processes import die_with_parent
from tuner.report.lines import LineView
from tuner.request import StudyOutcome, StudyRequest, default_prompts
from tuner.search import Known
from tuner.signals import sigterm_interrupts
from tuner.units import format_bytes
from tuner.workplace import Device, study_at, workplace

BUSY_WAIT = timedelta(minutes=1)
"""Before a job is tried again whose device others use."""
WORSE = 1.05
"""A step that takes longer than before by this is told as a change for the worse."""


class Work:
    """One job from its lease to its end."""

    def __init__(self, order: WorkOrder, settings: Settings, clock: Clock, log: TextIO) -> None:
        self._order, self._settings, self._clock, self._log = order, settings, clock, log
        self._registry = open_registry(settings.registry, create=False, opening=settings.opening)
        self._queue = self._registry.jobs
        self._lease = Lease(self._queue.get(order.job), order.token)

    def do(self) -> None:
        """Raises LeaseLost where the job is not ours, RegistryError where its end cannot be
        kept."""
        if (job := self._lease.job).token != self._order.token:
            raise LeaseLost(f"job {job.id} was given to somebody else")
        try:
            message = self._answered_before() or self._tuned()
        except LeaseLost:
            raise
        except (KeyboardInterrupt, Interrupted):
            self._hand_back("stopped; its finished trials are kept")
        except DeviceBusy as error:
            self._hand_back(error.message, BUSY_WAIT)
        except TunerError as error:
            self._fail(str(error), is_final=isinstance(error, InvalidInput))
        else:
            self._queue.finish(self._lease, message=message, now=self._clock.now())
            self._say(message)

    def _answered_before(self) -> str | None:
        """A process that was killed between publishing and saying so left only the latter."""
        study_id = self._lease.job.study_id
        if study_id is None or self._registry.study(study_id).status != "finished":
            return None
        records = self._registry.history(study=study_id)
        return f"published {len(records)} plans (study {study_id[:12]})" if records else None

    def _tuned(self) -> str:
        """What was published. Raises TunerError where nothing was."""
        body = self._lease.job.body
        before = self._before(body)
        request = replace(
            request_of(body),
            first=tuple(Known(r.plan, r.measurement.step_ms) for r in before),
        )
        self._say(
            f"job {self._lease.job.id}: {body.key.ref.name} at {body.key.workload.label}, within "
            f"{format_bytes(body.key.budget_bytes)}"
        )
        python = Path(body.key.python) if body.key.python else None
        if body.key.python:
            refuse_foreign(body.key.python)
        device = Device(self._order.gpu, python=python, yields=True)
        with workplace(self._settings, device, command=self._shown, clock=self._clock) as place:
            known = answered_meanwhile(self._registry, self._lease.job, place.detection.environment)
            if known is not None:
                return f"answered meanwhile by record {short(known.record.id)}"
            outcome = study_at(place, request, self._listener(), lease=self._lease)
        message = published(outcome, self._registry)
        return message + (change_since(before[0], outcome.best) if before else "")

    def _before(self, body: JobBody) -> tuple[TuningRecord, ...]:
        """The records that were named to be measured first; one that is gone, or that
        cannot be read now, is left out."""
        found = []
        for record_id in body.first:
            try:
                found.append(self._registry.record(record_id).record)
            except RegistryError as error:
                self._say(f"not measured first: {error.message}")
        return tuple(found)

    @property
    def _shown(self) -> tuple[str, ...]:
        return ("tuner", "daemon", f"(job {self._lease.job.id})")

    def _listener(self) -> Callable[[StudyEvent], None]:
        view = LineView(self._say, self._clock.monotonic_s)

        def hear(event: StudyEvent) -> None:
            if isinstance(event, StudyStarted):
                self._queue.note_study(self._lease, event.study_id)
            view(event)

        return hear

    def _hand_back(self, message: str, wait: timedelta = timedelta()) -> None:
        self._say(message)
        self._queue.hand_back(self._lease, message=message, now=self._clock.now(), wait=wait)

    def _fail(self, message: str, *, is_final: bool) -> None:
        self._say(f"Error: {message}")
        now = self._clock.now()
        self._queue.fail(self._lease, message=message, now=now, is_final=is_final)

    def _say(self, line: str) -> None:
        print(line, file=self._log, flush=True)


def request_of(body: JobBody) -> StudyRequest:
    """Raises InvalidInput for a model that is no longer where it was."""
    key = body.key
    model = resolve_model(key.model, weights=key.ref.weights, revision=key.ref.revision)
    return StudyRequest(
        model=model,
        workload=Workload(shapes=key.workload.shapes),
        budget_bytes=key.budget_bytes,
        host_budget_bytes=key.host_budget_bytes,
        policy=key.policy,
        objective=key.objective,
        time_limit_s=body.time_limit_s,
        steps=body.steps,
        prompts=default_prompts(model),
    )


def published(outcome: StudyOutcome, registry: Registry) -> str:
    """One line for people. Raises TunerError where nothing was proved: InvalidInput where another
    run of the same would prove no more."""
    study = f"study {outcome.study_id[:12]}"
    if outcome.best is not None:
        speedup = f"{outcome.best.speedup:.2f} times as fast as the baseline"
        return f"published {len(outcome.published)} plans, the best {speedup} ({study})"
    notes = "; ".join(outcome.notes)
    message = f"nothing could be proved ({study}): {notes}"
    ended = registry.study(outcome.study_id).status
    raise InvalidInput(message) if ended == "finished" else TunerError(message)


def change_since(before: TuningRecord, now: TuningRecord | None) -> str:
    """How the new best compares with the one before it, by step times, for people, with the
    caveat that one of them was taken beside others' load."""
    if now is None:
        return ""
    loaded = now.measurement.contaminated or before.measurement.contaminated
    caveat = " (beside others' load)" if loaded else ""
    change = now.measurement.step_ms / before.measurement.step_ms
    if change >= WORSE:
        return (
            f"; {change:.2f} times as slow as before{caveat}: "
            + "; ".join(environment_changes(now.environment, before.environment))
            + f". `tuner pin {short(before.id)}` keeps to the old plan"
        )
    return f"; {1 / change:.2f} times as fast as before{caveat}" if change <= 1 / WORSE else ""


def main() -> int:
    """Exit code 0 where the registry says what became of the job."""
    order = WorkOrder.model_validate_json(sys.stdin.buffer.read())
    die_with_parent(order.parent_pid)
    os.nice(order.nice)
    settings = replace(load_settings(), registry=order.registry)
    with sigterm_interrupts(), suppress(BrokenPipeError):
        try:
            Work(order, settings, SystemClock(), sys.stderr).do()
        except TunerError as error:
            print(f"Error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the job's log
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
