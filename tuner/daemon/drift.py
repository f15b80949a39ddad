"""Which published answers no longer match this machine: pure, records in, questions out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry.digest import digest
from registry.environment import Environment
from registry.jobs import JobBody, JobKey
from registry.record import TuningRecord
from registry.records import StoredRecord
from tuner.matching import environment_changes, same_device

MAX_PRIORITY = 99
"""Under what users ask for."""
MOST_FIRST = 4
"""The old winner and runners-up that are measured before all others."""
NEAR = 1.15
"""Slower than the old winner by more than this, a plan was no runner-up to it."""


@dataclass(frozen=True)
class Origin:
    """How a record's study was asked: by which interpreter (None: the daemon's own), under which
    name of the model (None: not known, of a local folder), with how many steps and within what
    time."""

    python: str | None = None
    model: str | None = None
    steps: int | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Drifted:
    """A question whose answers were all proved in another environment. `changes` says what changed
    since the nearest of them, in words; `fetches` how often they were given out."""

    body: JobBody
    changes: tuple[str, ...]
    fetches: int

    @property
    def priority(self) -> int:
        return min(self.fetches, MAX_PRIORITY)


def drifted(
    records: Iterable[StoredRecord],
    environments: Mapping[str | None, Environment],
    origin_of: Callable[[TuningRecord], Origin],
    selector: str,
) -> tuple[Drifted, ...]:
    """The most fetched first. `records` are current ones; `environments` those of today, by
    interpreter. Records of other devices are left out, as are those of an interpreter that is not
    among them, and of local folders that nobody knows the path of."""
    groups: dict[JobKey, list[StoredRecord]] = defaultdict(list)
    origins: dict[JobKey, Origin] = {}
    for stored in records:
        origin = origin_of(stored.record)
        python = _interpreter(stored.record, origin, environments)
        key = None if python is _NOBODY else _key(stored.record, origin, python, selector)
        if key is not None:
            groups[key].append(stored)
            origins.setdefault(key, origin)
    found = (_drifted(key, groups[key], environments[key.python], origins[key]) for key in groups)
    return tuple(sorted((item for item in found if item), key=lambda item: -item.fetches))


_NOBODY = "\0"


def _interpreter(
    record: TuningRecord, origin: Origin, environments: Mapping[str | None, Environment]
) -> str | None:
    """Whose answer a record is. Where its study does not say, it is that of the interpreter whose
    environment is nearest to the one it was proved in."""
    here = {
        python: environment
        for python, environment in environments.items()
        if same_device(environment.hardware, record.environment.hardware)
    }
    if origin.python is not None:
        return origin.python if origin.python in here else _NOBODY
    if not here:
        return _NOBODY
    return min(here, key=lambda python: (_distance(here[python], record), python or ""))


def _distance(environment: Environment, record: TuningRecord) -> int:
    return len(environment_changes(environment, record.environment))


def _key(record: TuningRecord, origin: Origin, python: str | None, selector: str) -> JobKey | None:
    name = origin.model or (None if record.model.source == "local" else record.model.name)
    if name is None:
        return None
    return JobKey(
        model=name,
        ref=record.model,
        workload=record.workload,
        budget_bytes=record.budget_bytes,
        host_budget_bytes=record.host_budget_bytes,
        policy=record.quality.policy,
        objective=record.objective,
        python=python,
        selector=selector,
    )


def _drifted(
    key: JobKey, stored: Sequence[StoredRecord], environment: Environment, origin: Origin
) -> Drifted | None:
    """None where one of the answers still holds, or is pinned: then no other is wanted."""
    if any(item.pinned for item in stored):
        return None
    nearest = min(stored, key=lambda item: _distance(environment, item.record))
    changes = environment_changes(environment, nearest.record.environment)
    if not changes:
        return None
    body = JobBody(
        key=key,
        reason="drift",
        steps=origin.steps,
        time_limit_s=origin.time_limit_s,
        first=_first(_ranking(stored)),
        environment=digest(environment),
    )
    return Drifted(body, changes, sum(item.fetches for item in stored))


def _first(ranking: Sequence[StoredRecord]) -> tuple[str, ...]:
    limit = NEAR * _score(ranking[0].record)
    near = [item.record.id for item in ranking if _score(item.record) <= limit]
    return tuple(near[:MOST_FIRST])


def _ranking(stored: Sequence[StoredRecord]) -> list[StoredRecord]:
    """The newest study's plans, the fastest first, and then those of the studies before it."""
    newest: dict[str, int] = {}
    for item in sorted(stored, key=lambda item: item.published_at, reverse=True):
        newest.setdefault(item.record.study, len(newest))
    distinct: dict[str, StoredRecord] = {}
    for item in sorted(stored, key=lambda item: (newest[item.record.study], _score(item.record))):
        distinct.setdefault(item.record.plan.digest, item)
    return list(distinct.values())


def _score(record: TuningRecord) -> float:
    measured = record.measurement
    return measured.step_ms if measured.latency_s is None else 1000 * measured.latency_s
