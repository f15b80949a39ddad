"""Let go of artifacts and trials beyond a quota, the longest unused first.

Never what a plan in service needs: a record keeps both while it is the newest answer to its
question, pinned, or was published or fetched of late. Bytes of artifacts are removed by the
collector (`registry.maintenance`) once nothing names them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, case, delete, func, select

from registry.database import Database
from registry.jobs import OPEN
from registry.rows import AnyRow, to_time
from registry.schema import (
    ARTIFACTS,
    FETCHES,
    JOBS,
    PINS,
    RECORD_ARTIFACTS,
    RECORDS,
    STUDIES,
    TRIALS,
)
from registry.studies import UNFINISHED

_COLUMNS = (
    RECORDS.c.id,
    RECORDS.c.status,
    RECORDS.c.publication,
    RECORDS.c.study,
    RECORDS.c.family_digest,
    RECORDS.c.host_budget_bytes,
    RECORDS.c.policy,
    RECORDS.c.objective,
)


@dataclass(frozen=True)
class Quota:
    """What all artifacts of records, and all trials with their logs, may take together, in bytes.
    A record that was neither published nor fetched after `unused_since` is unused."""

    artifacts_bytes: float
    trials_bytes: float
    unused_since: datetime


@dataclass(frozen=True)
class Trimmed:
    """How many records lost their artifacts, and how many trials are gone."""

    records: int
    trials: int


def trim(database: Database, quota: Quota) -> Trimmed:
    """One transaction. Studies and records stay; the plan of a record that lost its artifacts is
    compiled anew where it is used again."""
    with database.write() as connection:
        records = _by_use(connection)
        needed = _needed(records, to_time(quota.unused_since))
        others = [row.id for row in records if row.id not in needed]
        studies = {row.study for row in records if row.id in needed}
        return Trimmed(
            records=_trim_artifacts(connection, others, quota.artifacts_bytes),
            trials=_trim_trials(connection, studies, quota.trials_bytes),
        )


def _by_use(connection: Connection) -> Sequence[AnyRow]:
    """The longest unused first."""
    is_later = FETCHES.c.last_at > RECORDS.c.published_at
    used_at = case((is_later, FETCHES.c.last_at), else_=RECORDS.c.published_at)
    query = (
        select(*_COLUMNS, PINS.c.pinned_at, used_at.label("used_at"))
        .outerjoin(FETCHES, FETCHES.c.record_id == RECORDS.c.id)
        .outerjoin(PINS, PINS.c.key_digest == RECORDS.c.key_digest)
        .order_by("used_at", RECORDS.c.id)
    )
    return connection.execute(query).all()


def _needed(records: Sequence[AnyRow], unused_since: str) -> set[str]:
    current = [row for row in records if row.status == "current"]
    newest: dict[tuple[object, ...], int] = {}
    for row in current:
        newest[_question(row)] = max(row.publication, newest.get(_question(row), 0))
    return {
        row.id
        for row in current
        if row.pinned_at is not None
        or row.used_at >= unused_since
        or row.publication == newest[_question(row)]
    }


def _question(row: AnyRow) -> tuple[object, ...]:
    return (row.family_digest, row.host_budget_bytes, row.policy, row.objective)


def _trim_artifacts(connection: Connection, others: Sequence[str], limit_bytes: float) -> int:
    """Bytes that several records name count once, and are freed with the last of them."""
    rows = connection.execute(select(RECORD_ARTIFACTS)).all()
    sizes = {row.sha256: row.size_bytes for row in rows}
    named = Counter(row.sha256 for row in rows)
    own: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        own[row.record_id].append(row.sha256)
    total_bytes, dropped = sum(sizes.values()), []
    for record_id in others:
        if record_id in own and total_bytes > limit_bytes:
            named.subtract(own[record_id])
            total_bytes -= sum(sizes[one] for one in set(own[record_id]) if not named[one])
            dropped.append(record_id)
    connection.execute(delete(RECORD_ARTIFACTS).where(RECORD_ARTIFACTS.c.record_id.in_(dropped)))
    return len(dropped)


def _trim_trials(connection: Connection, needed: Collection[str], limit_bytes: float) -> int:
    """Of whole studies that ended, the oldest first."""
    rows = connection.execute(_studies_query()).all()
    open_jobs = select(JOBS.c.study_id).where(JOBS.c.status.in_(OPEN))
    kept = {*needed, *connection.scalars(open_jobs)}
    total_bytes, dropped = sum(row.held_bytes for row in rows), []
    for row in rows:
        if total_bytes > limit_bytes and row.status not in UNFINISHED and row.id not in kept:
            total_bytes -= row.held_bytes
            dropped.append(row.id)
    gone = connection.execute(delete(TRIALS).where(TRIALS.c.study_id.in_(dropped)))
    return gone.rowcount


def _studies_query() -> Select[Any]:
    held_bytes = func.sum(func.length(TRIALS.c.body) + func.coalesce(ARTIFACTS.c.size_bytes, 0))
    return (
        select(STUDIES.c.id, STUDIES.c.status, held_bytes.label("held_bytes"))
        .join(TRIALS, TRIALS.c.study_id == STUDIES.c.id)
        .outerjoin(ARTIFACTS, ARTIFACTS.c.sha256 == TRIALS.c.log_sha256)
        .group_by(STUDIES.c.id)
        .order_by(STUDIES.c.finished_at, STUDIES.c.id)
    )
