"""Records that people hold on to, whatever is measured later.

A pin is on a record's key, so that it stays with the plan when the same is proved again. It ends
with `unpin` alone: a record that is revoked answers nothing, pinned or not.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from registry.digest import short
from registry.errors import InvalidInput
from registry.records import find_id
from registry.rows import to_time
from registry.schema import PINS, RECORDS


def pin(connection: Connection, prefix: str, now: datetime) -> str:
    """The record's id. Raises RecordNotFound, InvalidInput for one that is not in service."""
    record_id = find_id(connection, prefix)
    row = connection.execute(select(RECORDS).where(RECORDS.c.id == record_id)).one()
    if row.status != "current":
        raise InvalidInput(
            f"record {short(record_id)} is {row.status}: it answers nothing and cannot be pinned",
            hint="`tuner history` lists those in service; `tuner rollback` brings one back.",
        )
    connection.execute(delete(PINS).where(PINS.c.key_digest == row.key_digest))
    connection.execute(insert(PINS).values(key_digest=row.key_digest, pinned_at=to_time(now)))
    return record_id


def unpin(connection: Connection, prefix: str) -> str:
    """The record's id. Raises RecordNotFound, InvalidInput for one that is not pinned."""
    record_id = find_id(connection, prefix)
    key = select(RECORDS.c.key_digest).where(RECORDS.c.id == record_id).scalar_subquery()
    if not connection.execute(delete(PINS).where(PINS.c.key_digest == key)).rowcount:
        raise InvalidInput(f"record {short(record_id)} is not pinned")
    return record_id
