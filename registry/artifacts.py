"""Content-addressed files in a folder beside the database: `registry.sqlite3.artifacts/ab/abcdef…`.

Bytes are written to a temporary file on the same file system and synced (`stage`), then renamed
into place and the folder synced (`Staged.place`), and only then does the caller commit a row. A
process killed in between leaves a file without a row, which the collector takes; never a row
without bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from registry.errors import (
    InvalidInput,
    RegistryCorrupt,
    RegistryError,
    RegistryFull,
    RegistryReadOnly,
)
from registry.rows import sha256_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Staged:
    """Bytes that are safe on disk under a temporary name. Leaving the block removes what was not
    placed."""

    temporary: Path
    final: Path
    sha256: str
    size_bytes: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.temporary.unlink(missing_ok=True)

    def place(self) -> None:
        """Rename into place. Bytes already there are replaced by the same, which heals damage."""
        with _translated(self.final):
            self.final.parent.mkdir(mode=0o700, exist_ok=True)
            self.temporary.replace(self.final)
            sync_folder(self.final.parent)
            sync_folder(self.final.parent.parent)


class Incoming:
    """Bytes on their way to a temporary file, piece by piece. Leaving the block removes them,
    unless they were `staged`. Methods raise RegistryFull and RegistryReadOnly."""

    def __init__(self, folder: ArtifactFolder) -> None:
        self._folder, self._hasher, self._is_staged = folder, hashlib.sha256(), False
        self.size_bytes = 0
        with _translated(folder.folder):
            self._temporary = folder.temporary()
            self._writer = self._temporary.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_staged:
            return
        with suppress(OSError):  # of a full disk `write` has told
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        with _translated(self._folder.folder):
            self._hasher.update(piece)
            self.size_bytes += self._writer.write(piece)

    def staged(self) -> Staged:
        """Synced."""
        with _translated(self._folder.folder), self._writer:
            self._writer.flush()
            os.fsync(self._writer.fileno())
        self._is_staged = True
        sha256 = self._hasher.hexdigest()
        return Staged(self._temporary, self._folder.path(sha256), sha256, self.size_bytes)


class ArtifactFolder:
    """The files alone; which of them belong to what is in the database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where these bytes lie or would lie. Raises InvalidInput unless given 64 hex digits."""
        if not _DIGEST.fullmatch(sha256):
            raise InvalidInput(f"{sha256!r} is not the SHA-256 of an artifact (64 hex digits)")
        return self.folder / sha256[:2] / sha256

    def stage(self, source: Path | bytes) -> Staged:
        """Copy to a temporary file here. Raises InvalidInput where `source` cannot be read,
        RegistryFull (nothing stays behind) and RegistryReadOnly."""
        with _opened(source) as reader, _translated(self.folder), self.incoming() as incoming:
            while piece := reader.read(_CHUNK_BYTES):
                incoming.write(piece)
            return incoming.staged()

    def incoming(self) -> Incoming:
        """For bytes that come in pieces."""
        return Incoming(self)

    def verified(self, sha256: str, size_bytes: int) -> Path:
        """The file, its size and digest checked now. Raises RegistryCorrupt."""
        path = self.path(sha256)
        problem = self.problem(sha256, size_bytes)
        if problem is not None:
            raise RegistryCorrupt(problem, hint="Tune again, or restore the file from a copy.")
        return path

    def read(self, sha256: str, size_bytes: int) -> bytes:
        """The very bytes that were checked. Raises RegistryCorrupt."""
        try:
            data = self.path(sha256).read_bytes()
        except OSError as error:
            raise RegistryCorrupt(f"artifact {sha256}: {error.strerror}") from error
        if len(data) != size_bytes or sha256_of(data) != sha256:
            raise RegistryCorrupt(f"artifact {sha256} does not match its digest")
        return data

    def problem(self, sha256: str, size_bytes: int) -> str | None:
        """What is wrong with a file that should be here."""
        path = self.path(sha256)
        try:
            found_bytes = path.stat().st_size
            if found_bytes != size_bytes:
                return f"artifact {sha256} has {found_bytes} bytes, not {size_bytes}"
            with path.open("rb") as reader:
                if hashlib.file_digest(reader, "sha256").hexdigest() != sha256:
                    return f"artifact {sha256} does not match its digest"
        except OSError as error:
            return f"artifact {sha256} cannot be read ({error.strerror})"
        return None

    def files(self) -> Iterator[Path]:
        """Every placed file."""
        for path in sorted(self.folder.glob("[0-9a-f][0-9a-f]/*")):
            if _DIGEST.fullmatch(path.name):
                yield path

    def temporaries(self) -> Iterator[Path]:
        yield from sorted((self.folder / "tmp").glob("*"))

    def temporary(self) -> Path:
        """A new empty file on the same file system, of mode 0600."""
        folder = self.folder / "tmp"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        return Path(name)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        reader = source.open("rb")
    except OSError as error:
        raise InvalidInput(f"artifact file {source} cannot be read ({error.strerror})") from error
    with reader:
        yield reader


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _translated(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate(error, place) from error


def translate(error: OSError, place: Path) -> RegistryError:
    """The one place where the file system's errors become ours."""
    if error.errno in _FULL:
        return RegistryFull(
            f"no space left for an artifact in {place} ({error.strerror}); nothing was kept of it",
            hint="Free disk space or raise the quota, then run the same command again.",
        )
    if error.errno in _READ_ONLY:
        return RegistryReadOnly(
            f"the artifact folder {place} cannot be written ({error.strerror})",
            hint="Give write permission on it, or choose another registry with --registry.",
        )
    return RegistryError(f"artifact in {place}: {error.strerror}")
