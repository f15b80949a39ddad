"""Records on their way from one registry to another, with their artifacts and signatures.

What arrives is what was signed, byte for byte. Only records in service travel; of one key the newer
stays, also where it was taken out of service: nothing older comes back for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.digest import short
from registry.errors import (
    InvalidInput,
    RecordNotFound,
    RegistryConflict,
    RegistryCorrupt,
    UntrustedArtifact,
)
from registry.inventory import ModelInventory
from registry.record import ArtifactRef
from registry.records import StoredRecord
from registry.signing import GivenSignatures, Signature, statements
from registry.store import Registry

REFUSALS = (InvalidInput, RecordNotFound, RegistryConflict, RegistryCorrupt, UntrustedArtifact)
"""What is wrong with one record, and says nothing of the others."""


@dataclass(frozen=True)
class Parcel:
    """A record and the signatures of its artifacts."""

    stored: StoredRecord
    signatures: Mapping[ArtifactRef, Signature | None]

    @property
    def id(self) -> str:
        return self.stored.record.id

    @property
    def artifacts(self) -> tuple[ArtifactRef, ...]:
        return self.stored.record.artifacts

    @property
    def signer(self) -> GivenSignatures:
        """Signs as its maker did."""
        signed = [self.stored.signature, *(self.signatures.get(ref) for ref in self.artifacts)]
        told = zip(statements(self.stored.record, self.stored.body), signed, strict=True)
        return GivenSignatures({what: by for what, by in told if by is not None})


@dataclass(frozen=True)
class Transferred:
    """Ids of what was new, how many were there already or are older than what is, and why others
    were left out."""

    new: tuple[str, ...] = ()
    known: int = 0
    left_out: tuple[str, ...] = ()


def parcels(
    source: Registry, *, model_name: str | None = None, record_ids: Sequence[str] = ()
) -> list[Parcel]:
    """Records in service, the oldest publication first: all, those of a model, or those named,
    each once. Raises RecordNotFound for a name that is none of a record in service."""
    if record_ids:
        named = [source.record(name) for name in record_ids]
        found = list({stored.record.id: stored for stored in named}.values())
    else:
        found = list(reversed(source.candidates(model_name=model_name)))
    for stored in found:
        if stored.status != "current":
            raise RecordNotFound(f"record {short(stored.record.id)} is {stored.status}")
    return [_parcel(source, stored) for stored in found]


def copy(
    source: Registry, target: Registry, sent: Iterable[Parcel], *, now: datetime
) -> Transferred:
    """Each record in a transaction of its own, so that what fails later keeps what came before.
    Left out is one whose artifact is lost at the source, or that the target refuses: its maker is
    not trusted there, or it contradicts what is there."""

    def send(parcel: Parcel) -> bool:
        return is_wanted(target, parcel) and take(source, target, parcel, now)

    return one_by_one(sent, send)


def take(source: Registry, target: Registry, parcel: Parcel, now: datetime) -> bool:
    """A record with its artifacts; whether it was taken. Raises what either registry meets."""
    for ref in parcel.artifacts:
        target.put_artifact(ref.kind, source.artifact_path(ref))
    return deliver(target, parcel, now)


def one_by_one(sent: Iterable[Parcel], send: Callable[[Parcel], bool]) -> Transferred:
    """What came of `send`, which says whether a record was new."""
    new, known, left_out = [], 0, []
    for parcel in sent:
        try:
            is_new = send(parcel)
        except REFUSALS as error:
            left_out.append(f"record {short(parcel.id)}: {error.message}")
            continue
        if is_new:
            new.append(parcel.id)
        else:
            known += 1
    return Transferred(tuple(new), known, tuple(left_out))


def is_wanted(target: Registry, parcel: Parcel) -> bool:
    """Not where it or a newer one of its key is known, whatever became of that. It spares the way
    of the artifacts; the target decides when it publishes, also by records unreadable here."""
    record = parcel.stored.record
    return not any(
        there.record.id == record.id or there.record.created_at >= record.created_at
        for there in target.history(key_digest=record.key.digest)
    )


def deliver(target: Registry, parcel: Parcel, now: datetime) -> bool:
    """Whether it was taken. Its artifacts are there already."""
    record, body = parcel.stored.record, parcel.stored.body
    taken = target.publish([record], now=now, keys=parcel.signer, bodies=[body])
    return record.id in taken


def put_inventories(
    target: Registry, inventories: Mapping[str, ModelInventory], now: datetime
) -> None:
    """Those of models that the target does not know; what it counted itself stays."""
    for key, inventory in inventories.items():
        if target.inventory(key) is None:
            target.put_inventory(key, inventory, now)


def _parcel(source: Registry, stored: StoredRecord) -> Parcel:
    if not stored.record.artifacts:
        return Parcel(stored, {})
    known = source.artifact_signatures([stored.record.id])
    return Parcel(stored, {ref: signature for (_, ref), signature in known.items()})
