"""Studies and their trials: what a tuning run has tried, so that a killed one can go on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict
from sqlalchemy import Connection, insert, select, update

from registry.base import Frozen, FrozenMapping
from registry.digest import canonical_json
from registry.environment import Environment
from registry.errors import RecordNotFound, RegistryError
from registry.record import Trial
from registry.rows import (
    AnyRow,
    check_columns,
    corrupt,
    from_time,
    only_match,
    parsed,
    prefix_range,
    readable,
    sealed,
    to_time,
)
from registry.schema import ARTIFACTS, STUDIES, TRIALS
from registry.workload import ModelRef, Workload

StudyStatus = Literal["running", "interrupted", "finished", "failed"]
StudyEndStatus = Literal["interrupted", "finished", "failed"]

UNFINISHED = ("running", "interrupted")


class StudyBody(Frozen):
    """What a study was asked, fixed at its start. `request` is provenance: command options."""

    model_config = ConfigDict(defer_build=True)

    identity: str
    model: ModelRef
    workload: Workload
    environment: Environment
    request: FrozenMapping[Any]


class StudyRow(StudyBody):
    """One tuning run. A killed one stays "running", and `begin_study` continues it."""

    id: str
    status: StudyStatus
    started_at: datetime
    finished_at: datetime | None = None
    summary: FrozenMapping[Any] | None = None


@dataclass(frozen=True)
class StudyEnd:
    """How a study ends; may be given to `publish`, so that both happen or neither."""

    study_id: str
    status: StudyEndStatus
    summary: Mapping[str, Any]


def begin(connection: Connection, body: StudyBody, now: datetime) -> StudyRow:
    """Continue the unfinished study of this identity, else start one."""
    unfinished = (STUDIES.c.identity == body.identity, STUDIES.c.status.in_(UNFINISHED))
    study_id = connection.scalar(select(STUDIES.c.id).where(*unfinished))
    if study_id is None:
        study_id = _insert(connection, body, now)
    else:
        resume = update(STUDIES).where(STUDIES.c.id == study_id)
        connection.execute(resume.values(status="running", finished_at=None, summary=None))
    return get(connection, study_id)


def _insert(connection: Connection, body: StudyBody, now: datetime) -> str:
    study_id = uuid.uuid4().hex
    connection.execute(
        insert(STUDIES).values(
            id=study_id,
            identity=body.identity,
            status="running",
            model_name=body.model.name,
            started_at=to_time(now),
            **sealed(body),
        )
    )
    return study_id


def end(connection: Connection, outcome: StudyEnd, now: datetime) -> None:
    """A finished study stays so: who comes to another end after another has finished it comes too
    late. Raises RecordNotFound."""
    this = update(STUDIES).where(STUDIES.c.id == outcome.study_id)
    may_end = this if outcome.status == "finished" else this.where(STUDIES.c.status != "finished")
    summary = canonical_json(outcome.summary)
    ended = may_end.values(status=outcome.status, summary=summary, finished_at=to_time(now))
    if connection.execute(ended).rowcount == 0:
        get(connection, outcome.study_id)


def find(connection: Connection, prefix: str) -> StudyRow:
    """Raises RecordNotFound where none or several start with `prefix`, RegistryCorrupt."""
    low, high = prefix_range(prefix, "study")
    query = select(STUDIES.c.id).where(STUDIES.c.id >= low, STUDIES.c.id < high).limit(5)
    return get(connection, only_match(list(connection.scalars(query)), prefix, "study"))


def get(connection: Connection, study_id: str) -> StudyRow:
    row = connection.execute(select(STUDIES).where(STUDIES.c.id == study_id)).one_or_none()
    if row is None:
        raise _no_study(study_id)
    return study_row(row)


def newest(connection: Connection, model_name: str | None, limit: int) -> tuple[StudyRow, ...]:
    """Newest first; a damaged one is left out with a warning in the log."""
    query = select(STUDIES).order_by(STUDIES.c.started_at.desc(), STUDIES.c.id).limit(limit)
    if model_name is not None:
        query = query.where(STUDIES.c.model_name == model_name)
    return readable(connection.execute(query), study_row)


def study_row(row: AnyRow) -> StudyRow:
    """Raises RegistryCorrupt naming the study."""
    what = f"study {row.id}"
    body = parsed(StudyBody, row, what)
    check_columns(row, {"identity": body.identity, "model_name": body.model.name}, what)
    finished = row.finished_at
    try:
        return StudyRow(
            **dict(body),
            id=row.id,
            status=row.status,
            started_at=from_time(row.started_at, what),
            finished_at=None if finished is None else from_time(finished, what),
            summary=None if row.summary is None else json.loads(row.summary),
        )
    except ValueError as error:
        raise corrupt(what, "its status or summary cannot be read") from error


def add_trial(connection: Connection, study_id: str, trial: Trial) -> int:
    """The trial's number. Raises RecordNotFound, RegistryError for a log that was not put."""
    if connection.scalar(select(STUDIES.c.id).where(STUDIES.c.id == study_id)) is None:
        raise _no_study(study_id)
    log = trial.log.sha256 if trial.log is not None else None
    if log is not None and not _has_artifact(connection, log):
        raise RegistryError(f"the trial's log {log} is not in the registry: put it first")
    columns = {**trial_columns(trial), **sealed(trial), "study_id": study_id}
    statement = insert(TRIALS).values(**columns).returning(TRIALS.c.id)
    return int(connection.execute(statement).scalar_one())


def _has_artifact(connection: Connection, sha256: str) -> bool:
    query = select(ARTIFACTS.c.sha256).where(ARTIFACTS.c.sha256 == sha256)
    return connection.scalar(query) is not None


def trials(connection: Connection, study_id: str) -> tuple[Trial, ...]:
    """In the order they were added; a damaged one is left out with a warning, so a study that
    continues tries it again."""
    query = select(TRIALS).where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.id)
    return readable(connection.execute(query), trial_of)


def trials_of_plan(
    connection: Connection, plan_digest: str, limit: int
) -> tuple[tuple[str, Trial], ...]:
    """With the id of each one's study, newest first; a damaged one is left out with a warning."""
    query = select(TRIALS).where(TRIALS.c.plan_digest == plan_digest)
    rows = connection.execute(query.order_by(TRIALS.c.id.desc()).limit(limit))
    return readable(rows, lambda row: (str(row.study_id), trial_of(row)))


def trial_columns(trial: Trial) -> dict[str, Any]:
    return {
        "rung": trial.rung,
        "plan_digest": trial.plan.digest,
        "log_sha256": trial.log.sha256 if trial.log is not None else None,
    }


def trial_of(row: AnyRow) -> Trial:
    """Raises RegistryCorrupt naming the trial."""
    what = f"trial {row.id} of study {row.study_id}"
    trial = parsed(Trial, row, what)
    check_columns(row, trial_columns(trial), what)
    return trial


def _no_study(study_id: str) -> RecordNotFound:
    return RecordNotFound(f"there is no study {study_id}", hint="`tuner history` lists the ids.")
