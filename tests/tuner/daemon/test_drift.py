"""Which answers no longer match, and what is asked for them."""

from __future__ import annotations

import sys

from sqlalchemy import update

from registry.digest import digest
from registry.environment import Environment
from registry.record import TuningRecord
from registry.records import StoredRecord
from registry.schema import JOBS
from registry.sqlite_database import open_database
from registry.store import Registry
from tests.registry import samples
from tests.tuner.study_bench import ManualClock
from tuner.daemon.drift import MAX_PRIORITY, Origin, drifted
from tuner.daemon.watcher import Watcher

TODAY = samples.environment(torch="2.14.0")
NOBODY_KNOWS = Origin()


def stored(record: TuningRecord, fetches: int = 0, minutes: float = 0) -> StoredRecord:
    return StoredRecord(
        record=record, status="current", fetches=fetches, published_at=samples.later(minutes)
    )


def look(
    *records: StoredRecord,
    environments: dict[str | None, Environment] | None = None,
    origins: dict[str, Origin] | None = None,
) -> list[tuple[int, str | None, int]]:
    """(budget, interpreter, fetches) of each question that drifted."""
    found = drifted(
        records,
        environments or {None: TODAY},
        lambda record: (origins or {}).get(record.study, NOBODY_KNOWS),
        "test CPU",
    )
    return [(i.body.key.budget_bytes, i.body.key.python, i.fetches) for i in found]


def test_an_answer_of_todays_environment_has_not_drifted() -> None:
    assert look(stored(samples.record(torch="2.14.0"))) == []


def test_an_answer_of_another_version_has() -> None:
    (found,) = drifted(
        [stored(samples.record(), fetches=3)],
        {None: TODAY},
        lambda _: Origin(steps=4, time_limit_s=60.0),
        "test CPU",
    )
    assert found.changes == ("torch: 2.14.0 here, 2.13.0 when proved",)
    body = found.body
    assert (body.reason, body.environment) == ("drift", digest(TODAY))
    assert (body.steps, body.time_limit_s) == (4, 60.0)
    assert (body.key.model, body.key.ref, body.key.selector) == (
        "tiny-flux",
        samples.MODEL,
        "test CPU",
    )
    assert (found.priority, found.fetches) == (3, 3)


def test_one_answer_that_holds_is_enough() -> None:
    both = samples.record(), samples.record(torch="2.14.0", threads=2, minutes=1)
    assert look(*map(stored, both)) == []


def test_each_question_is_one_job_and_the_most_fetched_comes_first() -> None:
    plans = [samples.record(threads=threads) for threads in (1, 2)]
    other = samples.record(budget_bytes=10**9, threads=3)
    found = look(stored(plans[0], 2), stored(plans[1], 3), stored(other, 9))
    assert found == [(10**9, None, 9), (2 * samples.GIB, None, 5)]
    (many,) = drifted([stored(plans[0], 10_000)], {None: TODAY}, lambda _: NOBODY_KNOWS, "")
    assert many.priority == MAX_PRIORITY


def test_records_of_other_devices_are_not_ours() -> None:
    gpu = samples.record()
    hardware = gpu.environment.hardware.model_copy(update={"cpu_model": "another"})
    environment = gpu.environment.model_copy(update={"hardware": hardware})
    assert look(stored(gpu.model_copy(update={"environment": environment}))) == []


def test_a_local_folder_is_known_by_the_job_that_named_it() -> None:
    local = samples.MODEL.model_copy(update={"source": "local"})
    record = samples.record().model_copy(update={"model": local})
    assert look(stored(record)) == []
    origin = Origin(model="/models/mine")
    (found,) = drifted([stored(record)], {None: TODAY}, lambda _: origin, "")
    assert found.body.key.model == "/models/mine"


APP = "/app/bin/python"
BOTH = {None: samples.environment(torch="2.14.0"), APP: samples.environment(torch="2.13.0")}


def test_an_apps_answers_are_held_against_the_app() -> None:
    """Not against the daemon's own packages, whether its study says so or not."""
    ours = samples.record(study="1" * 32)
    assert look(stored(ours), environments=BOTH) == []
    assert look(stored(ours), environments=BOTH, origins={"1" * 32: Origin(APP)}) == []
    newer = {**BOTH, APP: samples.environment(torch="2.13.1")}
    found = look(stored(ours), environments=newer, origins={"1" * 32: Origin(APP)})
    assert found == [(2 * samples.GIB, APP, 0)]


def test_an_interpreter_that_cannot_be_seen_is_left_alone() -> None:
    origins = {"1" * 32: Origin("/gone/python")}
    assert look(stored(samples.record(study="1" * 32)), origins=origins) == []


def test_the_old_winner_and_its_runners_up_are_measured_first() -> None:
    second = samples.record(threads=1, study="1" * 32)
    fast = with_latency(samples.record(threads=2, study="1" * 32), 0.45)
    far = with_latency(samples.record(threads=4, study="1" * 32), 0.8)
    before = samples.record(threads=3, study="2" * 32)
    again = samples.record(threads=2, study="2" * 32, minutes=-9)
    (found,) = drifted(
        [stored(before, minutes=-9), stored(again, minutes=-9), *map(stored, (far, second, fast))],
        {None: TODAY},
        lambda _: NOBODY_KNOWS,
        "",
    )
    assert found.body.first == (fast.id, second.id, before.id)


def with_latency(record: TuningRecord, latency_s: float) -> TuningRecord:
    (shape,) = record.measurement.shapes
    shapes = (shape.model_copy(update={"latency_s": latency_s}),)
    measured = record.measurement.model_copy(update={"shapes": shapes})
    return record.model_copy(update={"measurement": measured})


def watcher(registry: Registry, environment: Environment, clock: ManualClock) -> Watcher:
    return Watcher(registry, lambda _: environment, lambda: (), "test CPU", clock)


def test_what_drifted_is_enqueued_once(registry: Registry) -> None:
    registry.publish([samples.record()], now=samples.NOW)
    clock = ManualClock()
    watch = watcher(registry, TODAY, clock)
    watch.look()
    watch.look()
    (job,) = registry.jobs.list()
    assert (job.status, job.body.reason) == ("queued", "drift")


def test_a_pinned_answer_is_not_asked_for_again(registry: Registry) -> None:
    record = samples.record()
    registry.publish([record], now=samples.NOW)
    registry.pin(record.id, now=samples.NOW)
    watcher(registry, TODAY, ManualClock()).look()
    assert registry.jobs.list() == ()
    registry.unpin(record.id)
    watcher(registry, TODAY, ManualClock()).look()
    assert registry.jobs.counts() == {"queued": 1}


def test_a_damaged_job_keeps_no_other_question_from_being_asked(registry: Registry) -> None:
    for number, budget_bytes in enumerate((samples.GIB, 2 * samples.GIB)):
        record = samples.record(threads=number + 1, budget_bytes=budget_bytes)
        registry.publish([record], now=samples.NOW)
    watch = watcher(registry, TODAY, ManualClock())
    watch.look()
    first, _ = sorted(registry.jobs.list(), key=lambda job: job.id)
    registry.jobs.cancel(2, now=samples.NOW)
    with open_database(registry.path, create=False).write() as connection:
        connection.execute(update(JOBS).where(JOBS.c.id == first.id).values(body=b"{}"))
    watcher(registry, samples.environment(torch="2.15.0"), ManualClock()).look()
    assert registry.jobs.counts() == {"cancelled": 1, "queued": 2}


def test_a_look_ends_with_its_daemon(registry: Registry) -> None:
    """It neither asks the next interpreter, which might take its time, nor enqueues."""
    registry.publish([samples.record()], now=samples.NOW)
    asked = []

    def described(python: str) -> Environment:
        asked.append(python)
        watch.end()
        return TODAY

    watch = Watcher(registry, described, lambda: ("/a", "/b"), "test CPU", ManualClock())
    watch.look()
    assert asked == [sys.executable]
    assert registry.jobs.list() == ()


def test_what_was_tried_in_this_environment_is_not_asked_again(registry: Registry) -> None:
    """A re-tune that failed, or that the user cancelled, waits for another change."""
    registry.publish([samples.record()], now=samples.NOW)
    clock = ManualClock()
    watcher(registry, TODAY, clock).look()
    registry.jobs.cancel(1, now=samples.NOW)
    watcher(registry, TODAY, clock).look()
    assert [job.status for job in registry.jobs.list()] == ["cancelled"]
    watcher(registry, samples.environment(torch="2.15.0"), clock).look()
    assert [job.status for job in registry.jobs.list()] == ["queued", "cancelled"]
