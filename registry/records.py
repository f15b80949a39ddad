"""How a published record lies in its row, and how it is proved when it is read back.

Every column that can be derived from the record is compared with it on reading: a flipped bit in
the row is reported and never served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field
from sqlalchemy import ColumnElement, Connection, Select, and_, insert, or_, select, update

from registry import verifications
from registry.base import Frozen
from registry.digest import digest, short
from registry.errors import RecordNotFound, RegistryTooNew
from registry.plan import PLAN_FORMAT
from registry.record import TuningRecord
from registry.rows import (
    AnyRow,
    check_columns,
    corrupt,
    from_time,
    only_match,
    parsed,
    prefix_range,
    to_time,
)
from registry.schema import FETCHES, PINS, RECORD_READER, RECORDS, VERIFICATIONS
from registry.signing import ArtifactStatement, Signature
from registry.verification import Verification

KEYS_A_QUERY = 500
"""Under every database's limit of parameters."""

RecordStatus = Literal["current", "superseded", "revoked"]


class StoredRecord(Frozen):
    """A record and what happened to it since it was published.

    `superseded_by` is the id of the newer version of its key; `revoked_reason` says why it was
    taken out of service; `pinned` whether people hold on to its key (`registry.pins`).
    `signature`, None if unsigned, is over `statement`, which is of `body`: the bytes as they were
    stored, which a newer release might write otherwise. `verification` is what came of the last
    time its plan was run again, None if it never was. Readers older than `minimum_reader` skip it.
    """

    # Built when first written as JSON: answering an app needs the values only.
    model_config = ConfigDict(defer_build=True)

    record: TuningRecord
    status: RecordStatus
    fetches: int
    published_at: datetime
    superseded_by: str | None = None
    revoked_reason: str | None = None
    pinned: bool = False
    statement: ArtifactStatement | None = None
    signature: Signature | None = None
    verification: Verification | None = None
    body: bytes = Field(b"", exclude=True, repr=False)
    minimum_reader: int = Field(RECORD_READER, exclude=True, repr=False)


@dataclass(frozen=True)
class Wanted:
    """Which candidates: every value that is not None must be equal. `device` is "cuda" or "cpu";
    `hardware`, `runtime` and `workload` are digests."""

    model_name: str | None = None
    architecture: str | None = None
    weights: str | None = None
    device: str | None = None
    hardware: str | None = None
    runtime: str | None = None
    workload: str | None = None
    max_peak_vram_bytes: int | None = None
    max_format: int = PLAN_FORMAT

    @property
    def columns(self) -> dict[str, str | None]:
        return {
            "model_name": self.model_name,
            "architecture": self.architecture,
            "weights": self.weights,
            "device": self.device,
            "hardware_digest": self.hardware,
            "runtime_digest": self.runtime,
            "workload_digest": self.workload,
        }


@dataclass(frozen=True)
class Page:
    """At most `limit` records, those that come behind the record of id `after`."""

    limit: int
    after: str | None = None


def family(record: TuningRecord) -> str:
    """Digest of what `rollback` stays within: same model and weights, workload, hardware, budget.

    Plan and runtime are left out, since a later study answers the same question with others.
    """
    key = record.key
    return digest([key.architecture, key.weights, key.workload, key.hardware, record.budget_bytes])


def derived_columns(record: TuningRecord) -> dict[str, Any]:
    """The columns that follow from the record alone."""
    key = record.key
    return {
        "id": record.id,
        "key_digest": key.digest,
        "family_digest": family(record),
        "model_name": record.model.name,
        "architecture": key.architecture,
        "weights": key.weights,
        "device": record.environment.hardware.device,
        "hardware_digest": key.hardware,
        "runtime_digest": key.runtime,
        "workload_digest": key.workload,
        "plan_digest": key.plan,
        "plan_format": record.plan.format,
        "objective": record.objective,
        "policy": record.quality.policy,
        "calibrated": record.quality.calibrated,
        "budget_bytes": record.budget_bytes,
        "host_budget_bytes": record.host_budget_bytes,
        "peak_vram_bytes": record.measurement.memory.peak_vram_bytes,
        "step_ms": record.measurement.step_ms,
        "latency_s": record.measurement.latency_s,
        "study": record.study,
    }


def select_records(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Rows for `stored`, newest publication first."""
    return (
        select(RECORDS, FETCHES.c.fetches, PINS.c.pinned_at, *verifications.COLUMNS)
        .outerjoin(FETCHES, FETCHES.c.record_id == RECORDS.c.id)
        .outerjoin(PINS, PINS.c.key_digest == RECORDS.c.key_digest)
        .outerjoin(VERIFICATIONS, VERIFICATIONS.c.record_id == RECORDS.c.id)
        .where(*conditions)
        .order_by(RECORDS.c.publication.desc(), RECORDS.c.id)
    )


def stored(row: AnyRow) -> StoredRecord:
    """Raises RegistryCorrupt naming the record, RegistryTooNew where it needs a newer reader."""
    what = f"record {row.id}"
    if not isinstance(row.minimum_reader, int):
        raise corrupt(what, "its minimum reader is not a number")
    if row.minimum_reader > RECORD_READER:
        raise RegistryTooNew(f"{what} needs a newer reader", hint="Upgrade this installation.")
    record = parsed(TuningRecord, row, what)
    check_columns(row, derived_columns(record), what)
    if row.status not in get_args(RecordStatus):
        raise corrupt(what, f"its status is {row.status!r}")
    return StoredRecord.model_construct(
        record=record,
        status=row.status,
        fetches=row.fetches or 0,
        published_at=from_time(row.published_at, what),
        superseded_by=row.superseded_by,
        revoked_reason=row.revoked_reason,
        pinned=row.pinned_at is not None,
        statement=ArtifactStatement.of_record(row.body, record),
        signature=signature_of(row),
        verification=verifications.verification_of(row),
        body=row.body,
        minimum_reader=row.minimum_reader,
    )


def signature_of(row: AnyRow) -> Signature | None:
    if row.key_id is None or row.signature is None:
        return None
    return Signature(key_id=row.key_id, value=row.signature)


def find_id(connection: Connection, prefix: str) -> str:
    """The one id that starts with `prefix`. Raises RecordNotFound."""
    low, high = prefix_range(prefix, "record")
    query = select(RECORDS.c.id).where(RECORDS.c.id >= low, RECORDS.c.id < high).limit(5)
    return only_match(list(connection.scalars(query)), prefix, "record")


def get(connection: Connection, record_id: str) -> StoredRecord:
    """Raises RecordNotFound, RegistryCorrupt, RegistryTooNew."""
    row = connection.execute(select_records(RECORDS.c.id == record_id)).one_or_none()
    if row is None:
        raise RecordNotFound(f"there is no record {short(record_id)}")
    return stored(row)


def candidates_query(wanted: Wanted) -> Select[Any]:
    """Current records whose columns equal every value of `wanted` that is not None."""
    conditions = [
        RECORDS.c.status == "current",
        RECORDS.c.plan_format <= wanted.max_format,
        RECORDS.c.minimum_reader <= RECORD_READER,
    ]
    conditions += _equal(wanted.columns)
    if wanted.max_peak_vram_bytes is not None:
        conditions.append(RECORDS.c.peak_vram_bytes <= wanted.max_peak_vram_bytes)
    return select_records(*conditions)


def history_query(wanted: Mapping[str, str | None]) -> Select[Any]:
    """Records of every status whose columns equal every value of `wanted` that is not None."""
    return select_records(*_equal(wanted))


def on_page(query: Select[Any], page: Page) -> Select[Any]:
    """Of a query of `select_records`: nothing behind an id that is not there."""
    if page.after is None:
        return query.limit(page.limit)
    this = select(RECORDS.c.publication).where(RECORDS.c.id == page.after).scalar_subquery()
    same_publication = and_(RECORDS.c.publication == this, RECORDS.c.id > page.after)
    return query.where(or_(RECORDS.c.publication < this, same_publication)).limit(page.limit)


def known_keys(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Those of which there is a record, of whatever status."""
    found: set[str] = set()
    for begin in range(0, len(digests), KEYS_A_QUERY):
        part = digests[begin : begin + KEYS_A_QUERY]
        query = select(RECORDS.c.key_digest).where(RECORDS.c.key_digest.in_(part)).distinct()
        found.update(connection.scalars(query))
    return found


def _equal(wanted: Mapping[str, str | None]) -> list[ColumnElement[bool]]:
    return [RECORDS.c[name] == value for name, value in wanted.items() if value is not None]


def note_fetch(connection: Connection, record_id: str, now: datetime, times: int = 1) -> None:
    """Raises RecordNotFound."""
    row = {"fetches": FETCHES.c.fetches + times, "last_at": to_time(now)}
    known = update(FETCHES).where(FETCHES.c.record_id == record_id)
    if connection.execute(known.values(**row)).rowcount:
        return
    if connection.scalar(select(RECORDS.c.id).where(RECORDS.c.id == record_id)) is None:
        raise RecordNotFound(f"there is no record {short(record_id)}")
    connection.execute(insert(FETCHES).values(**{**row, "record_id": record_id, "fetches": times}))
