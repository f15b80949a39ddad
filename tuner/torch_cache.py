"""The framing of torch's portable compile cache, read before torch reads it.

torch 2.13 joins a key of such a cache to its folder's path as it is: an absolute key or one with
".." writes elsewhere. So keys and kinds are checked here. Contents are pickles; they stay closed.
The layout is that of `torch.utils._appending_byte_serializer`: CRC-32, version, then for each kind
its name, a count, and as many pairs of key and content, each with its length before it.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator

from registry.errors import UntrustedArtifact

KINDS = frozenset({"aot_autograd", "autotune", "inductor", "pgo"})
MAX_KEY_CHARACTERS = 1024
_VERSION = 1
_NUMBER_BYTES = 8


def check_torch_cache(data: bytes) -> None:
    """Raises UntrustedArtifact for a damaged cache, an unknown kind, and a key that is no relative
    path without ".."."""
    for kind, key in _entries(_Reader(data)):
        if kind not in KINDS:
            raise UntrustedArtifact(f"torch's compile cache holds {kind!r}, an unknown kind")
        if not _is_safe(key):
            raise UntrustedArtifact(f"torch's compile cache has the key {key[:80]!r}")


def _is_safe(key: str) -> bool:
    plain = key.isascii() and key.isprintable() and "\\" not in key
    inside = not key.startswith("/") and ".." not in key.split("/")
    return bool(key) and len(key) <= MAX_KEY_CHARACTERS and plain and inside


class _Reader:
    """Never beyond the end. Raises UntrustedArtifact."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0
        checksum = bytes(self.take(4))
        if zlib.crc32(self._data[4:]).to_bytes(4, "big") != checksum:
            raise UntrustedArtifact("torch's compile cache does not match its checksum")

    @property
    def is_finished(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise UntrustedArtifact("torch's compile cache ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self) -> int:
        return int.from_bytes(self.take(_NUMBER_BYTES), "big")

    def text(self) -> str:
        try:
            return base64.b64decode(self.take(self.number()), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise UntrustedArtifact("torch's compile cache holds text that is none") from error


def _entries(reader: _Reader) -> Iterator[tuple[str, str]]:
    if (version := reader.number()) != _VERSION:
        raise UntrustedArtifact(f"torch's compile cache has framing version {version}")
    while not reader.is_finished:
        kind = reader.text()
        for _ in range(reader.number()):
            yield kind, reader.text()
            reader.take(reader.number())
