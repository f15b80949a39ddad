"""Records on their way from one registry to another, with their artifacts and signatures.

What arrives is what was signed, byte for byte. Only records in service travel; of one key the newer
stays, and what a registry took out of service does not come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from registry.digest import short
from registry.errors import RecordNotFound, RegistryCorrupt, UntrustedArtifact
from registry.inventory import ModelInventory
from registry.record import ArtifactRef
from registry.records import StoredRecord
from registry.signing import GivenSignatures, Signature, statements
from registry.store import Registry


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
    """Records in service, the oldest publication first: all, those of a model, or those named.
    Raises RecordNotFound for a name that is none of a record in service."""
    found = list(reversed(source.candidates(model_name=model_name)))
    if record_ids:
        found = [source.record(name) for name in record_ids]
    for stored in found:
        if stored.status != "current":
            raise RecordNotFound(f"record {short(stored.record.id)} is {stored.status}")
    return [_parcel(source, stored) for stored in found]


def copy(
    source: Registry, target: Registry, sent: Iterable[Parcel], *, now: datetime
) -> Transferred:
    """Each record in a transaction of its own, so that what fails later keeps what came before.
    Left out is one whose artifact is lost at the source, or whose maker the target does not trust.
    """
    new, known, left_out = [], 0, []
    for parcel in sent:
        if not is_wanted(target, parcel):
            known += 1
            continue
        try:
            _send(source, target, parcel, now)
        except (RecordNotFound, RegistryCorrupt, UntrustedArtifact) as error:
            left_out.append(f"record {short(parcel.id)}: {error.message}")
        else:
            new.append(parcel.id)
    return Transferred(tuple(new), known, tuple(left_out))


def _send(source: Registry, target: Registry, parcel: Parcel, now: datetime) -> None:
    for ref in parcel.artifacts:
        target.put_artifact(ref.kind, source.artifact_path(ref))
    deliver(target, parcel, now)


def is_wanted(target: Registry, parcel: Parcel) -> bool:
    """Not where it is known, whatever became of it, or a newer one of its key is in service."""
    record = parcel.stored.record
    return not any(
        there.record.id == record.id
        or (there.status == "current" and there.record.created_at >= record.created_at)
        for there in target.history(key_digest=record.key.digest)
    )


def deliver(target: Registry, parcel: Parcel, now: datetime) -> None:
    """Its artifacts are there already."""
    record, body = parcel.stored.record, parcel.stored.body
    target.publish([record], now=now, keys=parcel.signer, bodies=[body])


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
