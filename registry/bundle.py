"""Records with their artifacts as one signed file, for machines without a network.

A tar archive of plain files in this order: `manifest.json`, `signature.json`, and for each artifact
`artifacts/SHA256`. The signature is over the manifest, which names every artifact by its digest.
Nothing is unpacked by name: members are read one after another, and any other ends the reading.
Headers of extensions (long names, sparse files) are not understood: a reader of them believes what
nobody has signed.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from registry.transfer import (
    Parcel,
    Transferred,
    deliver,
    is_wanted,
    one_by_one,
    put_inventories,
)
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
) -> Transferred:
    """Replaces `path` once all is written; what was written is `new`. Left out is a record whose
    artifact is lost. Raises InvalidInput where there is nothing to write or no way to."""
    files: dict[str, Path] = {}

    def find(parcel: Parcel) -> bool:
        files.update({ref.sha256: source.artifact_path(ref) for ref in parcel.artifacts})
        return True

    done = one_by_one(sent, find)
    if not done.new:
        raise InvalidInput("there is no record to export", hint="; ".join(done.left_out) or None)
    whole = [parcel for parcel in sent if parcel.id in done.new]
    _write(path, _manifest(whole, now, inventories), _artifacts(whole), files, keys)
    return done


def _write(
    path: Path,
    manifest: bytes,
    artifacts: Iterable[ArtifactRef],
    files: Mapping[str, Path],
    keys: SigningKeys,
) -> None:
    """`files` has the artifacts' by their digests."""
    signature = canonical_json(keys.sign(BundleStatement.of(manifest)))
    with _replacing(path) as writer, _archive(writer) as archive:
        _add(archive, MANIFEST, io.BytesIO(manifest), len(manifest))
        _add(archive, SIGNATURE, io.BytesIO(signature), len(signature))
        for artifact in artifacts:
            with files[artifact.sha256].open("rb") as reader:
                _add(archive, ARTIFACTS + artifact.sha256, reader, artifact.size_bytes)


def _archive(writer: IO[bytes]) -> tarfile.TarFile:
    """This format has sizes over 8 GiB in the header itself."""
    return tarfile.open(fileobj=writer, mode="w", format=tarfile.GNU_FORMAT)


def import_bundle(path: Path, target: Registry, *, keys: SigningKeys, now: datetime) -> Transferred:
    """Raises UntrustedArtifact unless a trusted key signed it, InvalidInput for a file that is no
    bundle or is not whole. Records are published once all artifacts are there and proved, each in
    a transaction of its own; left out is what the target refuses."""
    try:
        with path.open("rb") as archive:
            members = _members(archive)
            manifest = _read_manifest(members, keys)
            wanted = [parcel for parcel in manifest.parcels if is_wanted(target, parcel)]
            _take(members, _artifacts(wanted), target)
    except (tarfile.TarError, OSError) as error:
        raise InvalidInput(f"{path} is not a bundle, or not whole ({error})") from error
    put_inventories(target, manifest.inventories, now)
    ids = {parcel.id for parcel in wanted}
    return one_by_one(
        manifest.parcels, lambda parcel: parcel.id in ids and deliver(target, parcel, now)
    )


@dataclass(frozen=True)
class Member:
    """A plain file in the archive, whose bytes are read before the next member is asked for."""

    name: str
    size_bytes: int
    archive: IO[bytes]

    def pieces(self) -> Iterator[bytes]:
        """Raises InvalidInput where the archive ends within it."""
        left = self.size_bytes
        while left:
            piece = self.archive.read(min(left, PIECE_BYTES))
            if not piece:
                raise InvalidInput(f"the bundle ends within its {self.name}")
            left -= len(piece)
            yield piece


def _members(archive: IO[bytes]) -> Iterator[Member]:
    """Raises InvalidInput for what is no plain file, TarError for what is no header."""
    total = os.fstat(archive.fileno()).st_size
    while (head := archive.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        told = tarfile.TarInfo.frombuf(head, "ascii", "replace")
        if told.type != tarfile.REGTYPE:
            raise InvalidInput(f"the bundle holds {told.name[:100]!r}, which is no plain file")
        begin = archive.tell()
        if not 0 <= told.size <= total - begin:
            raise InvalidInput(f"the bundle ends within its {told.name[:100]!r}")
        yield Member(told.name, told.size, archive)
        archive.seek(begin + -(-told.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)


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


def _read_manifest(members: Iterator[Member], keys: SigningKeys) -> Manifest:
    """Nothing of it is understood before its signature is verified."""
    body = _whole(next(members, None), MANIFEST, MANIFEST_BYTES)
    told = _whole(next(members, None), SIGNATURE, SIGNATURE_BYTES)
    try:
        signature = Signature.model_validate_json(told)
    except ValidationError as error:
        raise UntrustedArtifact("the bundle's signature is malformed") from error
    keys.verify(BundleStatement.of(body), signature)
    try:
        return _understood(json.loads(body))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(f"the bundle's manifest cannot be read ({error})") from error


def _understood(said: Any) -> Manifest:
    if said["format"] != FORMAT:
        raise InvalidInput(
            f"the bundle has format {said['format']}; this release reads {FORMAT}",
            hint="Upgrade this installation.",
        )
    stored = [(stored_of(answer), answer) for answer in said["records"]]
    parcels = [Parcel(item, signatures_of(answer, item.record.id)) for item, answer in stored]
    return Manifest(
        created_at=datetime.fromisoformat(said["created_at"]),
        parcels=tuple({parcel.id: parcel for parcel in parcels}.values()),
        inventories={
            key: ModelInventory.model_validate(value) for key, value in said["inventories"].items()
        },
    )


def _take(members: Iterator[Member], wanted: Sequence[ArtifactRef], target: Registry) -> None:
    """Put what is wanted into the registry, each proved by its digest. Raises InvalidInput where
    one is missing or has other bytes."""
    missing = {ref.sha256: ref for ref in wanted}
    for member in members:
        if not ARTIFACT.fullmatch(member.name):
            raise InvalidInput(f"the bundle holds {member.name!r}, which no bundle does")
        ref = missing.pop(member.name.removeprefix(ARTIFACTS), None)
        if ref is not None:  # else of a record that is known already
            _take_one(member, ref, target)
    if missing:
        raise InvalidInput(f"the bundle lacks artifact {short(next(iter(missing)))}")


def _take_one(member: Member, ref: ArtifactRef, target: Registry) -> None:
    """Nothing is written of one that is larger than what was signed."""
    other = InvalidInput(f"artifact {short(ref.sha256)} of the bundle has other bytes")
    if member.size_bytes != ref.size_bytes:
        raise other
    with target.incoming_artifact() as incoming:
        for piece in member.pieces():
            incoming.write(piece)
        staged = incoming.staged()
    if staged.sha256 != ref.sha256:
        with staged:  # removes them
            raise other
    target.keep_artifact(staged)


def _whole(member: Member | None, name: str, most_bytes: int) -> bytes:
    if member is None or member.name != name or member.size_bytes > most_bytes:
        raise InvalidInput(f"the bundle has no {name} where it should be")
    return b"".join(member.pieces())


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
