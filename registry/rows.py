"""How values lie in a row: canonical JSON sealed with its digest, and times as sortable text."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Column, Connection, Row, insert, update

from registry.digest import canonical_json
from registry.errors import (
    AmbiguousId,
    InvalidInput,
    RecordNotFound,
    RegistryCorrupt,
    RegistryTooNew,
)

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
AnyRow = Row[*tuple[Any, ...]]

logger = logging.getLogger(__name__)

MINIMUM_PREFIX_LENGTH = 4
_HEX = frozenset("0123456789abcdef")


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(value: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """The columns `body` and `sha256`."""
    return sealed_bytes(canonical_json(value))


def sealed_bytes(body: bytes) -> dict[str, Any]:
    """`sealed`, of what is canonical JSON already."""
    return {"body": body, "sha256": sha256_of(body)}


def put_row(connection: Connection, key: Column[Any], columns: Mapping[str, Any]) -> None:
    """Update the row of this key, else insert it: writers are alone, so none comes in between."""
    this = update(key.table).where(key == columns[key.name])
    if connection.execute(this.values(**columns)).rowcount == 0:
        connection.execute(insert(key.table).values(**columns))


def unsealed(row: AnyRow, what: str) -> bytes:
    """The body, proved by its digest. Raises RegistryCorrupt naming `what`."""
    body = row.body
    if not isinstance(body, bytes) or sha256_of(body) != row.sha256:
        raise corrupt(what, "its bytes do not match their digest")
    return body


def parsed(model: type[Model], row: AnyRow, what: str) -> Model:
    """The body as `model`. Raises RegistryCorrupt, or RegistryTooNew where the bytes are whole but
    another release wrote them with fields this one does not know."""
    body = unsealed(row, what)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RegistryTooNew(
            f"{what} was written by another release and cannot be read by this one "
            f"({error.error_count()} fields differ)",
            hint="Upgrade this installation.",
        ) from error


def check_columns(row: AnyRow, derived: Mapping[str, Any], what: str) -> None:
    """Columns that people filter by must say what the body says. Raises RegistryCorrupt."""
    for name, value in derived.items():
        if getattr(row, name) != value:
            raise corrupt(what, f"its column {name} does not match its body")


def readable(rows: Iterable[AnyRow], read: Callable[[AnyRow], Value]) -> tuple[Value, ...]:
    """What `read` can prove; each other row is left out with a warning in the log."""
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except (RegistryCorrupt, RegistryTooNew) as error:
            logger.warning("%s; left out", error.message)
    return tuple(found)


def corrupt(what: str, why: str) -> RegistryCorrupt:
    return RegistryCorrupt(
        f"{what} is damaged: {why}",
        hint="`tuner registry check` lists everything damaged; a damaged record can be revoked.",
    )


def to_time(moment: datetime) -> str:
    """Raises InvalidInput on a time without a zone, which would mean another moment elsewhere."""
    if moment.tzinfo is None:
        raise InvalidInput(f"time {moment.isoformat()} has no time zone; give an aware datetime")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def from_time(text: str, what: str) -> datetime:
    """Raises RegistryCorrupt."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise corrupt(what, f"{text!r} is not a time") from error


def prefix_range(prefix: str, what: str) -> tuple[str, str]:
    """The half-open range of hex ids that start with `prefix`. Raises RecordNotFound."""
    if len(prefix) < MINIMUM_PREFIX_LENGTH or not _HEX.issuperset(prefix):
        raise RecordNotFound(
            f"{prefix!r} is not the id of a {what}: at least {MINIMUM_PREFIX_LENGTH} of its "
            "hex digits are needed",
            hint="`tuner history` lists the ids.",
        )
    return prefix, prefix + "g"


def only_match(ids: list[str], prefix: str, what: str) -> str:
    """Raises RecordNotFound where no id starts with `prefix`, AmbiguousId where several do."""
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise RecordNotFound(f"there is no {what} {prefix}", hint="`tuner history` lists the ids.")
    raise AmbiguousId(
        f"{prefix} could be {' or '.join(found[:16] for found in sorted(ids))}",
        hint=f"Give more digits of the {what}'s id.",
    )
