"""Compiled code as a file: equal parts make equal bytes, and nothing else is taken for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from registry.digest import canonical_json
from registry.errors import UntrustedArtifact
from tests.tuner.test_torch_cache import GOOD, torch_cache
from tuner.compiled_code import MAGIC, CodePart, CompiledCode, EntryKind, pack, unpack

LIBRARY = CodePart("library", "ab/cabcdefgh.main.so", b"\x7fELF")
GRAPH = CodePart("graph", "fxgraph/ab/fabcdefgh/abcdefgh", b"\x80\x04.")
AUTOGRAD = CodePart("autograd_graph", "aotautograd/aabcdefgh/abcdefgh", b"")
OF_TORCH = CodePart("torch_cache", "torch-cache", torch_cache(GOOD))
CODE = CompiledCode((AUTOGRAD, GRAPH, LIBRARY, OF_TORCH), compiler="0" * 64)


def with_index(change: Any, code: CompiledCode = CODE) -> bytes:
    """A file whose index was changed, and written in the one way that there is."""
    data = pack(code)
    begin = len(MAGIC) + 8
    end = begin + int.from_bytes(data[len(MAGIC) : begin], "big")
    index = json.loads(data[begin:end])
    change(index)
    raw = canonical_json(index)
    return MAGIC + len(raw).to_bytes(8, "big") + raw + data[end:]


def named(kind: str, name: str) -> bytes:
    """A file with one entry of this kind and name."""

    def change(index: Any) -> None:
        index["entries"][0] |= {"kind": kind, "name": name}

    return with_index(change, CompiledCode((LIBRARY,)))


def test_what_is_packed_comes_back() -> None:
    found = unpack(pack(CODE))
    assert sorted(found.parts, key=lambda part: part.name) == list(found.parts)
    assert set(found.parts) == set(CODE.parts)
    assert found.compiler == CODE.compiler
    assert found.of_kind("library") == (LIBRARY,)


def test_equal_parts_make_equal_bytes() -> None:
    assert pack(CompiledCode(tuple(reversed(CODE.parts)), CODE.compiler)) == pack(CODE)


def test_nothing_is_a_file_too() -> None:
    assert unpack(pack(CompiledCode(()))).parts == ()


@pytest.mark.parametrize("kind", ["graph", "autograd_graph", "library", "torch_cache"])
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../ab/cabcdefgh.main.so",
        "ab/../../cabcdefgh.so",
        "ab/cabcdefgh.py",
        "ab/cabcdefgh.main.so\n",
        "fxgraph/ab/fabcdefgh/..",
        "aotautograd/../abcdefgh",
        "",
    ],
)
def test_a_name_that_is_not_of_its_kind_is_refused(kind: EntryKind, name: str) -> None:
    with pytest.raises(UntrustedArtifact, match="is no name of a"):
        unpack(named(kind, name))
    with pytest.raises(ValidationError):
        pack(CompiledCode((CodePart(kind, name, b""),)))


def test_a_cache_of_torch_inside_is_looked_into() -> None:
    bad = CodePart("torch_cache", "torch-cache", torch_cache({"autotune": (("../x", b""),)}))
    with pytest.raises(UntrustedArtifact, match="has the key"):
        unpack(pack(CompiledCode((bad,))))


CHANGES = {
    "an unknown kind": lambda index: index["entries"][0].update(kind="script"),
    "an unknown key": lambda index: index["entries"][0].update(mode=0o777),
    "a link": lambda index: index["entries"][0].update(target="/etc/passwd"),
    "another format": lambda index: index.update(format=0),
    "a later format": lambda index: index.update(format=2),
    "no format": lambda index: index.pop("format"),
    "no entries": lambda index: index.pop("entries"),
    "a size below zero": lambda index: index["entries"][0].update(size_bytes=-1),
    "a size beyond all": lambda index: index["entries"][0].update(size_bytes=2**62),
    "a size too small": lambda index: index["entries"][2].update(size_bytes=2),
    "a digest of something else": lambda index: index["entries"][2].update(sha256="1" * 64),
    "a digest that is none": lambda index: index["entries"][2].update(sha256="x"),
    "another order": lambda index: index["entries"].reverse(),
    "an entry twice": lambda index: index["entries"].insert(0, index["entries"][0]),
    "an entry less": lambda index: index["entries"].pop(),
    "text for a size": lambda index: index["entries"][0].update(size_bytes="0"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_index_that_says_something_else_is_refused(change: Any) -> None:
    with pytest.raises(UntrustedArtifact):
        unpack(with_index(change))


SPACED = b'{"compiler":null,"entries":[], "format":1}'
TWICE = b'{"compiler":null,"entries":[],"format":2,"format":1}'


def framed(length: int, rest: bytes) -> bytes:
    return MAGIC + length.to_bytes(8, "big") + rest


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        MAGIC[:-1],
        torch_cache(GOOD),
        b"\x80\x04cos\nsystem\n.",
        framed(2**63, b"{}"),
        framed(3, b"{}"),
        framed(2, b"{}"),
        framed(2, b"\xff\xff"),
        framed(len(SPACED), SPACED),
        framed(len(TWICE), TWICE),
        pack(CODE)[:-1],
        pack(CODE) + b"\0",
    ],
)
def test_bytes_that_are_no_compiled_code_are_refused(data: bytes) -> None:
    with pytest.raises(UntrustedArtifact):
        unpack(data)
