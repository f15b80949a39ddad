"""Records with their artifacts as one signed file, for machines without a network.

A tar archive of plain files in this order: `manifest.json`, `signature.json`, and for each artifact
`artifacts/SHA256`. The signature is over the manifest, which names every artifact by its digest.
Nothing is unpacked by name: members are read one after another, and any other ends the reading.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from registry.digest import canonical_json, short
from registry.errors import InvalidInput, RegistryError, UntrustedArtifact
from registry.inventory import ModelInventory
from registry.record import ArtifactRef
from registry.signing import BundleStatement, Signature, SigningKeys
from registry.store import Registry
from registry.transfer import Parcel, Transferred, deliver, is_wanted, put_inventories
from registry.wire import record_json, signatures_of, stored_of

FORMAT = 1
MANIFEST, SIGNATURE, ARTIFACTS = "manifest.json", "signature.json", "artifacts/"
ARTIFACT = re.compile(r"artifacts/[0-9a-f]{64}")
MANIFEST_BYTES, SIGNATURE_BYTES = 256 << 20, 4096
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds; `created_at` as its maker's clock had it."""

    created_at: datetime
    parcels: tuple[Parcel, ...]
    inventories: Mapping[str, ModelInventory]


def write_bundle(
    path: Path,
    source: Registry,
    sent: Sequence[Parcel],
    *,
    keys: SigningKeys,
    now: datetime,
    inventories: Mapping[str, ModelInventory],
) -> None:
    """Replaces `path` once all is written. Raises RegistryCorrupt for an artifact that is lost, and
    InvalidInput where there is nothing to write or no way to."""
    if not sent:
        raise InvalidInput("there is no record to export")
    manifest = _manifest(sent, now, inventories)
    signature = keys.sign(BundleStatement.of(manifest))
    with _replacing(path) as writer, tarfile.open(fileobj=writer, mode="w") as archive:
        _add(archive, MANIFEST, io.BytesIO(manifest), len(manifest))
        told = canonical_json(signature)
        _add(archive, SIGNATURE, io.BytesIO(told), len(told))
        for artifact in _artifacts(sent):
            with source.artifact_path(artifact).open("rb") as reader:
                _add(archive, ARTIFACTS + artifact.sha256, reader, artifact.size_bytes)


def import_bundle(path: Path, target: Registry, *, keys: SigningKeys, now: datetime) -> Transferred:
    """Raises UntrustedArtifact unless a trusted key signed it, InvalidInput for a file that is no
    bundle or is not whole. Records are published once all artifacts are there and proved."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            members = iter(archive)
            manifest = _read_manifest(archive, members, keys)
            wanted = [parcel for parcel in manifest.parcels if is_wanted(target, parcel)]
            _take(archive, members, _artifacts(wanted), target)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidInput(f"{path} is not a bundle, or not whole ({error})") from error
    put_inventories(target, manifest.inventories, now)
    for parcel in wanted:
        deliver(target, parcel, now)
    return Transferred(
        tuple(parcel.id for parcel in wanted), known=len(manifest.parcels) - len(wanted)
    )


def _manifest(
    sent: Sequence[Parcel], now: datetime, inventories: Mapping[str, ModelInventory]
) -> bytes:
    records = [
        json.loads(
            record_json(item.stored, {(item.id, ref): by for ref, by in item.signatures.items()})
        )
        for item in sent
    ]
    return canonical_json(
        {
            "format": FORMAT,
            "created_at": now.isoformat(),
            "records": records,
            "inventories": inventories,
        }
    )


def _read_manifest(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], keys: SigningKeys
) -> Manifest:
    """Nothing of it is understood before its signature is verified."""
    body = _member(archive, next(members, None), MANIFEST, MANIFEST_BYTES)
    told = _member(archive, next(members, None), SIGNATURE, SIGNATURE_BYTES)
    try:
        signature = Signature.model_validate_json(told)
    except ValidationError as error:
        raise UntrustedArtifact("the bundle's signature is malformed") from error
    keys.verify(BundleStatement.of(body), signature)
    try:
        return _understood(json.loads(body))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"the bundle's manifest cannot be read ({error})") from error


def _understood(said: Any) -> Manifest:
    if said["format"] != FORMAT:
        raise InvalidInput(
            f"the bundle has format {said['format']}; this release reads {FORMAT}",
            hint="Upgrade this installation.",
        )
    stored = [(stored_of(answer), answer) for answer in said["records"]]
    return Manifest(
        created_at=datetime.fromisoformat(said["created_at"]),
        parcels=tuple(
            Parcel(item, signatures_of(answer, item.record.id)) for item, answer in stored
        ),
        inventories={
            key: ModelInventory.model_validate(value) for key, value in said["inventories"].items()
        },
    )


def _take(
    archive: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    wanted: Sequence[ArtifactRef],
    target: Registry,
) -> None:
    """Put what is wanted into the registry, each proved by its digest. Raises InvalidInput where
    one is missing or has other bytes."""
    missing = {ref.sha256: ref for ref in wanted}
    for member in members:
        if not (member.isreg() and ARTIFACT.fullmatch(member.name)):
            raise InvalidInput(f"the bundle holds {member.name!r}, which no bundle does")
        ref = missing.pop(member.name.removeprefix(ARTIFACTS), None)
        if ref is None:  # of a record that is known already
            continue
        with target.incoming_artifact() as incoming:
            reader = archive.extractfile(member)
            while reader is not None and (piece := reader.read(PIECE_BYTES)):
                incoming.write(piece)
            staged = incoming.staged()
        if (staged.sha256, staged.size_bytes) != (ref.sha256, ref.size_bytes):
            with staged:  # removes them
                raise InvalidInput(f"artifact {short(ref.sha256)} of the bundle has other bytes")
        target.keep_artifact(staged)
    if missing:
        raise InvalidInput(f"the bundle lacks artifact {short(next(iter(missing)))}")


def _member(
    archive: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, most_bytes: int
) -> bytes:
    if member is None or member.name != name or not member.isreg() or member.size > most_bytes:
        raise InvalidInput(f"the bundle has no {name} where it should be")
    reader = archive.extractfile(member)
    data = b"" if reader is None else reader.read()
    if len(data) != member.size:
        raise InvalidInput(f"the bundle ends within its {name}")
    return data


def _add(archive: tarfile.TarFile, name: str, reader: IO[bytes], size_bytes: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o644
    archive.addfile(member, reader)


def _artifacts(sent: Sequence[Parcel]) -> tuple[ArtifactRef, ...]:
    """Each once, whoever names it."""
    return tuple({ref.sha256: ref for parcel in sent for ref in parcel.artifacts}.values())


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Raises InvalidInput."""
    try:
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as writer:
            yield writer
            writer.flush()
            os.fsync(writer.fileno())
        Path(name).replace(path)
    except OSError as error:
        raise RegistryError(f"{path} was not written ({error.strerror})") from error
    finally:
        Path(name).unlink(missing_ok=True)
