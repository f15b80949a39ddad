"""How a registry's values travel over HTTP: what the service says and its client understands.

A record travels as the JSON it was stored as, so that its canonical form, over which it was signed,
is the same at both ends; whoever receives it proves that for himself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from registry import errors, publishing
from registry.base import Frozen
from registry.digest import canonical_json, short
from registry.errors import InvalidInput, RegistryCorrupt, RegistryTooNew, TunerError
from registry.plan import PLAN_FORMAT
from registry.record import ArtifactRef, Trial, TuningRecord
from registry.records import Page, RecordStatus, StoredRecord, Wanted
from registry.schema import RECORD_READER
from registry.signing import ArtifactStatement, GivenSignatures, Signature
from registry.studies import StudyRow
from registry.verification import Verification

API = "/v1"
PAGE_LIMIT = 100
"""Records an answer."""
MOST = 2**63 - 1

Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
InventoryKey = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00-\x1f]*$")]
"""It may hold the path of a folder."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Prefix = Annotated[str, Field(pattern=r"^[0-9a-f]{4,64}$")]
ArtifactSignatures = Mapping[tuple[str, ArtifactRef], Signature | None]


class SignedArtifact(Frozen):
    artifact: ArtifactRef
    signature: Signature | None = None


class RecordState(Frozen):
    """What happened to a record since it was published; as in `registry.records.StoredRecord`."""

    status: RecordStatus
    fetches: int
    published_at: datetime
    superseded_by: str | None = None
    revoked_reason: str | None = None
    pinned: bool = False
    minimum_reader: int
    signature: Signature | None = None
    artifact_signatures: tuple[SignedArtifact, ...] = ()
    verification: Verification | None = None


class RecordAnswer(RecordState):
    record: TuningRecord


class RecordPage(Frozen):
    """`after` asks for the next page; None: this is the last."""

    records: tuple[RecordAnswer, ...]
    after: Digest | None = None


class CandidateQuery(Frozen):
    """Which candidates: every value given must be equal."""

    model_name: Text | None = None
    architecture: Text | None = None
    weights: Text | None = None
    device: Text | None = None
    hardware: Text | None = None
    runtime: Text | None = None
    workload: Text | None = None
    max_peak_vram_bytes: int | None = Field(default=None, ge=0, le=MOST)
    max_format: int = Field(default=PLAN_FORMAT, ge=0, le=MOST)
    limit: int = Field(default=PAGE_LIMIT, ge=1, le=PAGE_LIMIT)
    after: Digest | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(**self.model_dump(exclude={"limit", "after"}))

    @property
    def page(self) -> Page:
        return Page(self.limit, self.after)


class HistoryQuery(Frozen):
    model_name: Text | None = None
    key_digest: Text | None = None
    study: Text | None = None
    architecture: Text | None = None
    plan_digest: Text | None = None
    limit: int = Field(default=PAGE_LIMIT, ge=1, le=PAGE_LIMIT)
    after: Digest | None = None

    @property
    def wanted(self) -> dict[str, str | None]:
        return self.model_dump(exclude={"limit", "after"})

    @property
    def page(self) -> Page:
        return Page(self.limit, self.after)


class StudyQuery(Frozen):
    model_name: Text | None = None
    limit: int = Field(default=50, ge=1, le=1000)


class TrialQuery(Frozen):
    limit: int = Field(default=20, ge=1, le=1000)


class TriedPlan(Frozen):
    study: StudyRow
    trial: Trial


class StatementSignature(Frozen):
    statement: ArtifactStatement
    signature: Signature


class Publication(Frozen):
    """Records to publish, all or none. Their artifacts are there already. `signatures` are of the
    records' canonical JSON and of their artifacts, by a key that the service trusts."""

    records: tuple[TuningRecord, ...] = Field(min_length=1, max_length=PAGE_LIMIT)
    signatures: tuple[StatementSignature, ...] = Field(default=(), max_length=10_000)

    @property
    def signer(self) -> GivenSignatures:
        return GivenSignatures({item.statement: item.signature for item in self.signatures})


class Published(Frozen):
    ids: tuple[str, ...]


class Revocation(Frozen):
    reason: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]


class ArtifactKept(Frozen):
    sha256: Digest
    size_bytes: int


class Health(Frozen):
    status: Literal["ok"] = "ok"


TOLD = (
    errors.RegistryError,
    errors.InvalidInput,
    errors.NoPlan,
    errors.UntrustedArtifact,
    errors.DeviceError,
)


class Problem(Frozen):
    """An error as RFC 9457 has it (application/problem+json), with the name of its class in
    `registry.errors` as `kind`, and what to do next as `hint`."""

    model_config = ConfigDict(extra="ignore")

    title: str
    status: int
    detail: str
    kind: str | None = None
    hint: str | None = None

    @property
    def error(self) -> TunerError | None:
        """None where it is none that a service may tell: it interrupts no client, for one."""
        kind = getattr(errors, self.kind or "", None)
        if not (isinstance(kind, type) and issubclass(kind, TOLD)):
            return None
        return kind(self.detail, hint=self.hint)


def record_json(stored: StoredRecord, signatures: ArtifactSignatures) -> bytes:
    """A `RecordAnswer`, with the record's own bytes in it."""
    state = RecordState(
        **{name: getattr(stored, name) for name in RecordState.model_fields.keys() & STORED},
        artifact_signatures=tuple(
            SignedArtifact(artifact=item, signature=signatures.get((stored.record.id, item)))
            for item in stored.record.artifacts
        ),
    )
    return b'{"record":' + stored.body + b"," + state.model_dump_json().encode()[1:]


STORED = StoredRecord.model_fields.keys()


def page_json(records: Iterable[bytes], after: str | None) -> bytes:
    """A `RecordPage` of what `record_json` made."""
    rest = json.dumps(after).encode()
    return b'{"records":[' + b",".join(records) + b'],"after":' + rest + b"}"


def stored_of(answer: Mapping[str, Any]) -> StoredRecord:
    """A `RecordAnswer` as the record it is. Raises RegistryTooNew where a newer release wrote it,
    RegistryCorrupt where it is none."""
    try:
        body = canonical_json(answer["record"])
        state = RecordState.model_validate(
            {name: value for name, value in answer.items() if name in RecordState.model_fields}
        )
        if state.minimum_reader > RECORD_READER:
            raise RegistryTooNew("a record needs a newer reader", hint="Upgrade this installation.")
        record = TuningRecord.model_validate_json(body)
        publishing.check_key(record)
        statement = ArtifactStatement.of_record(body, record)
    except ValidationError as error:
        raise RegistryTooNew(
            "a record was written by another release and cannot be read by this one "
            f"({error.error_count()} fields differ)",
            hint="Upgrade this installation.",
        ) from error
    except (KeyError, TypeError, ValueError, InvalidInput) as error:
        raise RegistryCorrupt(f"what came is not a record ({error!r})") from error
    kept = {name: getattr(state, name) for name in RecordState.model_fields.keys() & STORED}
    return StoredRecord(record=record, statement=statement, body=body, **kept)


def signatures_of(answer: Mapping[str, Any], name: str) -> Mapping[ArtifactRef, Signature | None]:
    """Of the artifacts of a `RecordAnswer`, whose record `name` is. Raises RegistryCorrupt."""
    try:
        signed = [SignedArtifact.model_validate(item) for item in answer["artifact_signatures"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise RegistryCorrupt(f"what came of record {short(name)} is none") from error
    return {item.artifact: item.signature for item in signed}
