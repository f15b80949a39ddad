"""Which artifacts there are, and who signed them for which record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, update

from registry.artifacts import Staged
from registry.digest import short
from registry.errors import RecordNotFound, UntrustedArtifact
from registry.record import ArtifactRef
from registry.records import signature_of
from registry.rows import to_time
from registry.schema import ARTIFACTS, RECORD_ARTIFACTS
from registry.signing import Signature


def note(connection: Connection, placed: Staged) -> None:
    """The row of a file that is in place. Put again, it counts as new for the collector."""
    put_at = to_time(datetime.fromtimestamp(placed.final.stat().st_mtime, UTC))
    again = update(ARTIFACTS).where(ARTIFACTS.c.sha256 == placed.sha256)
    if connection.execute(again.values(put_at=put_at)).rowcount:
        return
    row = {"sha256": placed.sha256, "size_bytes": placed.size_bytes, "put_at": put_at}
    connection.execute(insert(ARTIFACTS).values(**row))


def check_known(connection: Connection, artifact: ArtifactRef) -> None:
    """Raises RecordNotFound."""
    query = select(ARTIFACTS.c.size_bytes).where(ARTIFACTS.c.sha256 == artifact.sha256)
    if connection.scalar(query) != artifact.size_bytes:
        raise RecordNotFound(
            f"there is no artifact {artifact.sha256} of {artifact.size_bytes} bytes"
        )


def size_bytes(connection: Connection, sha256: str) -> int:
    """Raises RecordNotFound."""
    query = select(ARTIFACTS.c.size_bytes).where(ARTIFACTS.c.sha256 == sha256)
    found = connection.scalar(query)
    if found is None:
        raise RecordNotFound(f"there is no artifact {sha256}")
    return int(found)


def signatures(
    connection: Connection, record_ids: Sequence[str]
) -> dict[tuple[str, ArtifactRef], Signature | None]:
    """Of every artifact of these records, by the record's id and the artifact."""
    query = select(RECORD_ARTIFACTS).where(RECORD_ARTIFACTS.c.record_id.in_(record_ids))
    return {
        (
            row.record_id,
            ArtifactRef(kind=row.kind, sha256=row.sha256, size_bytes=row.size_bytes),
        ): signature_of(row)
        for row in connection.execute(query)
    }


def signature(connection: Connection, record_id: str, artifact: ArtifactRef) -> Signature | None:
    """None where it is not signed. Raises UntrustedArtifact where it is not this record's."""
    query = select(RECORD_ARTIFACTS).where(
        RECORD_ARTIFACTS.c.record_id == record_id,
        RECORD_ARTIFACTS.c.kind == artifact.kind,
        RECORD_ARTIFACTS.c.sha256 == artifact.sha256,
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UntrustedArtifact(
            f"{artifact.kind} {short(artifact.sha256)} is not kept for record {short(record_id)}"
        )
    return signature_of(row)
