"""Compiled code as one file, taken apart and checked before torch or the linker sees a byte of it.

    MAGIC | length of the index (8 bytes, big-endian) | index | contents, one after another

The index is canonical JSON, so that equal contents make equal bytes and there is one way to write
them. Each kind of entry has names of one form: none can leave the folder it is unpacked into. There
are no links, modes or times. A valid file still proves no maker: see `registry.signing`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from registry.base import Frozen
from registry.digest import canonical_json
from registry.errors import UntrustedArtifact
from tuner.torch_cache import check_torch_cache

MAGIC = b"tuner-compiled-code 1\n"
MAX_BYTES = 4 << 30
MAX_INDEX_BYTES = 4 << 20
_LENGTH_BYTES = 8

EntryKind = Literal["graph", "autograd_graph", "library", "torch_cache", "function"]
NAMES: Mapping[EntryKind, re.Pattern[str]] = {
    "graph": re.compile(r"fxgraph/[a-z0-9]{2}/[a-z0-9]{8,100}/[a-z0-9]{8,100}"),
    "autograd_graph": re.compile(r"aotautograd/[a-z0-9]{8,100}/[a-z0-9]{8,100}"),
    "library": re.compile(r"[a-z0-9]{2}/[a-z0-9]{8,100}(\.main)?\.so"),
    "torch_cache": re.compile(r"torch-cache"),
    "function": re.compile(r"function/[0-9a-f]{64}"),
}
"""Three kinds are files of Inductor's cache folder, by their path in it. "torch_cache" is what
`torch.compiler.save_cache_artifacts` gives; a "function" is code compiled ahead of time, by the key
of the calls that it serves. It is a pickle, and stays closed until such a call."""

KEPT_IN_MEMORY: frozenset[EntryKind] = frozenset({"torch_cache", "function"})


@dataclass(frozen=True)
class CodePart:
    """One content. `name` is the path in the compile cache's folder of what belongs there."""

    kind: EntryKind
    name: str
    data: bytes


class Entry(Frozen):
    kind: EntryKind
    name: str
    size_bytes: int = Field(ge=0, le=MAX_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> Self:
        if not NAMES[self.kind].fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a {self.kind}")
        return self


class Index(Frozen):
    """`compiler` is a digest of how C++ is compiled where this was made, paths included: elsewhere
    Inductor looks for its libraries under other names. None where no C++ was compiled."""

    format: Literal[1] = 1
    compiler: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    entries: tuple[Entry, ...]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        names = [entry.name for entry in self.entries]
        if any(first >= second for first, second in pairwise(names)):
            raise ValueError("the entries are not in the order of their names, each once")
        return self


@dataclass(frozen=True)
class CompiledCode:
    """What one process compiled. `compiler` as in `Index`."""

    parts: tuple[CodePart, ...]
    compiler: str | None = None

    @property
    def files(self) -> tuple[CodePart, ...]:
        """What belongs in the compile cache's folder."""
        return tuple(part for part in self.parts if part.kind not in KEPT_IN_MEMORY)

    def of_kind(self, kind: EntryKind) -> tuple[CodePart, ...]:
        return tuple(part for part in self.parts if part.kind == kind)


def pack(code: CompiledCode) -> bytes:
    """The same bytes for the same parts, in whatever order. Raises ValidationError for a name that
    `unpack` would refuse."""
    parts = sorted(code.parts, key=lambda part: part.name)
    index = canonical_json(Index(compiler=code.compiler, entries=tuple(map(_entry, parts))))
    length = len(index).to_bytes(_LENGTH_BYTES, "big")
    return b"".join((MAGIC, length, index, *(part.data for part in parts)))


def unpack(data: bytes) -> CompiledCode:
    """The parts of a file, each checked: its kind and name, its size and digest, and the framing of
    what torch would take apart itself. Raises UntrustedArtifact."""
    index, start = _index(data)
    sizes = sum(entry.size_bytes for entry in index.entries)
    if start + sizes != len(data):
        raise UntrustedArtifact(f"compiled code of {len(data)} bytes should have {start + sizes}")
    parts = tuple(_parts(data, start, index.entries))
    for part in parts:
        if part.kind == "torch_cache":
            check_torch_cache(part.data)
    return CompiledCode(parts, index.compiler)


def without_functions(data: bytes) -> bytes | None:
    """The same without what was compiled ahead of time; None where there is none. Raises
    UntrustedArtifact."""
    code = unpack(data)
    parts = tuple(part for part in code.parts if part.kind != "function")
    return pack(replace(code, parts=parts)) if parts and parts != code.parts else None


def _entry(part: CodePart) -> Entry:
    digest = hashlib.sha256(part.data).hexdigest()
    return Entry(kind=part.kind, name=part.name, size_bytes=len(part.data), sha256=digest)


def _index(data: bytes) -> tuple[Index, int]:
    """The index and where the contents begin."""
    if len(data) > MAX_BYTES or not data.startswith(MAGIC):
        raise UntrustedArtifact("not compiled code of a format that this release reads")
    begin = len(MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(data[len(MAGIC) : begin], "big")
    if length > min(MAX_INDEX_BYTES, len(data) - begin):
        raise UntrustedArtifact(f"compiled code with an index of {length} bytes")
    raw = data[begin : begin + length]
    try:
        index = Index.model_validate_json(raw)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise UntrustedArtifact(f"the index of the compiled code: {reason}") from error
    if canonical_json(index) != raw:
        raise UntrustedArtifact("the index of the compiled code is not canonical JSON")
    return index, begin + length


def _parts(data: bytes, start: int, entries: Iterable[Entry]) -> Iterator[CodePart]:
    for entry in entries:
        content = data[start : start + entry.size_bytes]
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise UntrustedArtifact(f"{entry.name} of the compiled code does not match its digest")
        yield CodePart(entry.kind, entry.name, content)
        start += entry.size_bytes
