"""What came of the last time that each record's plan was run again."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, delete, insert, select

from registry.digest import short
from registry.errors import RecordNotFound, RegistryTooNew
from registry.rows import AnyRow, corrupt, sealed, sha256_of, to_time
from registry.schema import RECORDS, VERIFICATIONS
from registry.verification import Verification

COLUMNS = (
    VERIFICATIONS.c.body.label("verification"),
    VERIFICATIONS.c.sha256.label("verification_sha256"),
)
"""Beside a record's own."""


def note(connection: Connection, found: Verification) -> None:
    """In place of what was known before. Raises RecordNotFound."""
    if connection.scalar(select(RECORDS.c.id).where(RECORDS.c.id == found.record)) is None:
        raise RecordNotFound(f"there is no record {short(found.record)}")
    connection.execute(delete(VERIFICATIONS).where(VERIFICATIONS.c.record_id == found.record))
    columns: dict[str, Any] = {
        "record_id": found.record,
        "verified_at": to_time(found.verified_at),
        "holds": found.holds,
        **sealed(found),
    }
    connection.execute(insert(VERIFICATIONS).values(**columns))


def verification_of(row: AnyRow) -> Verification | None:
    """Of a row with COLUMNS. Raises RegistryCorrupt naming the record, and RegistryTooNew."""
    if row.verification is None:
        return None
    what = f"the verification of record {row.id}"
    body = row.verification
    if not isinstance(body, bytes) or sha256_of(body) != row.verification_sha256:
        raise corrupt(what, "its bytes do not match their digest")
    try:
        found = Verification.model_validate_json(body)
    except ValidationError as error:
        raise RegistryTooNew(
            f"{what} was written by another release and cannot be read by this one",
            hint="Upgrade this installation.",
        ) from error
    if found.record != row.id:
        raise corrupt(what, "it is of another record")
    return found
