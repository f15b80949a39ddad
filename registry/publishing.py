"""Put proved records into service: one transaction, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from registry.digest import canonical_json, short
from registry.errors import InvalidInput, RegistryConflict
from registry.record import ArtifactRef, TuningRecord
from registry.records import derived_columns
from registry.rows import AnyRow, from_time, sealed_bytes, to_time
from registry.schema import ARTIFACTS, RECORD_ARTIFACTS, RECORD_READER, RECORDS
from registry.signing import ArtifactStatement, Signer

MOST = 2**63 - 1
"""The largest integer of a database."""

AHEAD = timedelta(minutes=15)
"""How far another machine's clock may be ahead of this one's."""


@dataclass(frozen=True)
class Prepared:
    """The rows of one record, made and signed before the write lock is taken. `came` says that
    it was made elsewhere, and that an older one may come after a newer."""

    record: TuningRecord
    columns: dict[str, Any]
    artifacts: tuple[dict[str, Any], ...]
    came: bool


def prepare(record: TuningRecord, signer: Signer | None, body: bytes | None = None) -> Prepared:
    """`body` is the record as its maker wrote it, where that was elsewhere: its signature is over
    these very bytes. Raises InvalidInput where the record contradicts its own key, cannot be read
    back, was made at a time without a zone, or holds a number that no database does."""
    check_key(record)
    to_time(record.created_at)
    sealed_body = sealed_bytes(canonical_json(record) if body is None else body)
    if TuningRecord.model_validate_json(sealed_body["body"]).id != record.id:
        raise InvalidInput(f"record {short(record.id)} does not survive a round trip as JSON")
    statement = ArtifactStatement.of_record(sealed_body["body"], record)
    columns = {
        **_columns(record),
        **sealed_body,
        **_signature_columns(statement, signer),
        "minimum_reader": RECORD_READER,
        "status": "current",
    }
    artifacts = tuple(_artifact_row(record, item, signer) for item in record.artifacts)
    return Prepared(record, columns, artifacts, came=body is not None)


def _columns(record: TuningRecord) -> dict[str, Any]:
    """The derived columns. Raises InvalidInput for what has no weighted mean, and for numbers and
    text that a database cannot hold."""
    name = short(record.id)
    try:
        columns = derived_columns(record)
    except (ArithmeticError, ValueError) as error:
        raise InvalidInput(f"record {name}: its measurement has no mean ({error})") from error
    for column, value in columns.items():
        if isinstance(value, int) and abs(value) > MOST:
            raise InvalidInput(f"record {name}: {column} {value} is too large to be kept")
        if isinstance(value, str) and "\0" in value:
            raise InvalidInput(f"record {name}: {column} holds a NUL character")
    return columns


def publish(connection: Connection, prepared: Sequence[Prepared], now: datetime) -> tuple[str, ...]:
    """Within the caller's write transaction. Ids of those that are there then: what came and is
    older than another of its key, whatever became of that one, is not taken. Raises InvalidInput,
    also for what came from the future, and RegistryConflict."""
    _check_distinct(prepared)
    for item in prepared:
        _check_time(item, now)
    newest = connection.scalar(select(func.max(RECORDS.c.publication)))
    publication, published_at = (newest or 0) + 1, to_time(now)
    taken = [item for item in prepared if _insert(connection, item, publication, published_at)]
    return tuple(item.record.id for item in taken)


def keep_unserved(connection: Connection, item: Prepared, now: datetime) -> None:
    """A record of a base, out of service here and without its artifacts, so that something can be
    said of it. Raises RegistryConflict."""
    if _is_there(connection, item):
        return
    newest = connection.scalar(select(func.max(RECORDS.c.publication)))
    row = {**item.columns, "status": "superseded", "publication": (newest or 0) + 1}
    connection.execute(insert(RECORDS).values(**row, published_at=to_time(now)))


def _check_time(item: Prepared, now: datetime) -> None:
    """No newer record would ever come after one from the future."""
    if item.came and item.record.created_at > now + AHEAD:
        raise InvalidInput(
            f"record {short(item.record.id)} was made at {item.record.created_at.isoformat()}, "
            f"which is later than now, {now.isoformat(timespec='seconds')}",
            hint="Set the clocks of both machines.",
        )


def _insert(connection: Connection, item: Prepared, publication: int, now: str) -> bool:
    """Whether it is there now."""
    if _is_there(connection, item):
        return True
    if item.came and _is_outdated(connection, item):
        return False
    _check_artifacts(connection, item.record)
    same_key = (RECORDS.c.key_digest == item.columns["key_digest"], RECORDS.c.status == "current")
    # The foreign key is deferred to the commit: the new row follows, and two current rows of one
    # key are never allowed, not even within the transaction.
    connection.execute(
        update(RECORDS).where(*same_key).values(status="superseded", superseded_by=item.record.id)
    )
    connection.execute(
        insert(RECORDS).values(**item.columns, publication=publication, published_at=now)
    )
    for row in item.artifacts:
        connection.execute(insert(RECORD_ARTIFACTS).values(**row))
    return True


def _is_outdated(connection: Connection, item: Prepared) -> bool:
    """Whether a record of its key was made later, in service or not, and also where this release
    cannot read it."""
    query = select(RECORDS.c.id, RECORDS.c.body, RECORDS.c.published_at).where(
        RECORDS.c.key_digest == item.columns["key_digest"]
    )
    return any(_made_at(row) > item.record.created_at for row in connection.execute(query))


def _made_at(row: AnyRow) -> datetime:
    """Where the body does not say it, it was at the latest when it was published."""
    try:
        made_at = datetime.fromisoformat(json.loads(row.body)["created_at"])
    except (ValueError, TypeError, KeyError):
        return from_time(row.published_at, f"record {row.id}")
    return made_at if made_at.tzinfo is not None else made_at.replace(tzinfo=UTC)


def _is_there(connection: Connection, item: Prepared) -> bool:
    """Published before by a caller who did not learn of it. Raises RegistryConflict where the same
    id holds other bytes."""
    query = select(RECORDS.c.sha256).where(RECORDS.c.id == item.record.id)
    known = connection.scalar(query)
    if known is not None and known != item.columns["sha256"]:
        raise RegistryConflict(f"record {short(item.record.id)} is already published differently")
    return known is not None


def _check_artifacts(connection: Connection, record: TuningRecord) -> None:
    wanted = {item.sha256: item.size_bytes for item in record.artifacts}
    query = select(ARTIFACTS.c.sha256, ARTIFACTS.c.size_bytes).where(
        ARTIFACTS.c.sha256.in_(list(wanted))
    )
    found = {row.sha256: row.size_bytes for row in connection.execute(query)}
    for sha256, size_bytes in wanted.items():
        if found.get(sha256) != size_bytes:
            raise RegistryConflict(
                f"artifact {short(sha256)} ({size_bytes} bytes) of record {short(record.id)} is "
                "not in the registry; nothing was published",
                hint="Put artifacts before publishing the records that name them.",
            )


def _check_distinct(prepared: Sequence[Prepared]) -> None:
    keys = [item.columns["key_digest"] for item in prepared]
    if len(set(keys)) != len(keys):
        raise InvalidInput("two of the records to publish have the same key: keep the newer one")


def check_key(record: TuningRecord) -> None:
    """Raises InvalidInput where the record's key names another workload, machine or plan."""
    body = {
        "workload": record.workload.digest,
        "hardware": record.environment.hardware.digest,
        "runtime": record.environment.runtime.digest,
        "plan": record.plan.digest,
    }
    for name, value in body.items():
        if getattr(record.key, name) != value:
            raise InvalidInput(
                f"record {short(record.id)}: its key names {name} {getattr(record.key, name)!r}, "
                f"but its {name} has digest {value}"
            )


def _artifact_row(
    record: TuningRecord, artifact: ArtifactRef, signer: Signer | None
) -> dict[str, Any]:
    statement = ArtifactStatement.of(artifact, record)
    return {
        "record_id": record.id,
        **artifact.model_dump(),
        **_signature_columns(statement, signer),
    }


def _signature_columns(statement: ArtifactStatement, signer: Signer | None) -> dict[str, Any]:
    signature = None if signer is None else signer.sign(statement)
    return {
        "key_id": signature.key_id if signature else None,
        "signature": signature.value if signature else None,
    }
