"""Take records out of service, and bring the version before back.

*Versions* of a record share its family: architecture, weights, workload, hardware and budget. The
version *before* a record R is the newest record of an earlier publication that is not revoked: of
R's own key if there is one (the one R superseded), else of R's family (an older study's plan).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, select, update

from registry.digest import short
from registry.errors import InvalidInput, RecordNotFound
from registry.records import StoredRecord, find_id, get
from registry.rows import AnyRow, to_time
from registry.schema import RECORDS

_COLUMNS = (
    RECORDS.c.id,
    RECORDS.c.status,
    RECORDS.c.key_digest,
    RECORDS.c.family_digest,
    RECORDS.c.publication,
)


def revoke(connection: Connection, prefix: str, reason: str, now: datetime) -> str:
    """Out of service for good; nothing takes its place. The id.

    A damaged record can be revoked too. The first reason given stays. Raises RecordNotFound.
    """
    record_id = find_id(connection, prefix)
    connection.execute(
        update(RECORDS)
        .where(RECORDS.c.id == record_id, RECORDS.c.status != "revoked")
        .values(status="revoked", revoked_reason=reason, revoked_at=to_time(now))
    )
    return record_id


def revoked_reason(connection: Connection, prefix: str) -> str | None:
    """Raises RecordNotFound."""
    query = select(RECORDS.c.revoked_reason).where(RECORDS.c.id == find_id(connection, prefix))
    reason: str | None = connection.scalar(query)
    return reason


def rollback(connection: Connection, prefix: str, now: datetime) -> StoredRecord:
    """Revoke R and put the version before it into service; what is in service now.

    If a newer record of that version's key is in service already, it stands for it. Records of
    the family other than R stay as they are. Raises RecordNotFound where there is no version
    before, and InvalidInput where R is not in service because a newer version is.
    """
    row = _row(connection, RECORDS.c.id == find_id(connection, prefix))
    if row is None:
        raise RecordNotFound(f"there is no record {prefix}")
    _check_newest(connection, row)
    before = _before(connection, row)
    revoke(connection, row.id, f"rolled back to {short(before.id)}", now)
    serving = _current(connection, before.key_digest)
    if serving is not None:
        return get(connection, serving.id)
    connection.execute(
        update(RECORDS)
        .where(RECORDS.c.id == before.id)
        .values(status="current", superseded_by=None)
    )
    return get(connection, before.id)


def _check_newest(connection: Connection, row: AnyRow) -> None:
    newer = _current(connection, row.key_digest)
    if newer is not None and newer.id != row.id:
        raise InvalidInput(
            f"record {short(row.id)} is {row.status}; a newer version, {short(newer.id)}, is in "
            "service",
            hint=f"Run `tuner rollback {short(newer.id)}`.",
        )


def _before(connection: Connection, row: AnyRow) -> AnyRow:
    earlier = (RECORDS.c.publication < row.publication, RECORDS.c.status != "revoked")
    found = _row(connection, RECORDS.c.key_digest == row.key_digest, *earlier) or _row(
        connection, RECORDS.c.family_digest == row.family_digest, *earlier
    )
    if found is None:
        raise RecordNotFound(
            f"there is no version before record {short(row.id)}; nothing was changed",
            hint=f"`tuner revoke {short(row.id)}` takes it out of service without a successor.",
        )
    return found


def _current(connection: Connection, key_digest: str) -> AnyRow | None:
    return _row(connection, RECORDS.c.key_digest == key_digest, RECORDS.c.status == "current")


def _row(connection: Connection, *conditions: ColumnElement[bool]) -> AnyRow | None:
    query = select(*_COLUMNS).where(*conditions)
    newest_first = query.order_by(RECORDS.c.publication.desc(), RECORDS.c.id).limit(1)
    return connection.execute(newest_first).first()
