"""torch's own framing of a compile cache, read before torch does."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

import pytest

from registry.errors import UntrustedArtifact
from tuner.torch_cache import check_torch_cache

Entries = Mapping[str, tuple[tuple[str, bytes], ...]]
GOOD: Entries = {
    "inductor": (("fabc", b"graph"), ("fabd", b"")),
    "aot_autograd": (("aabc", b"graph"),),
    "autotune": (("ab/cabc.best_config", b"{}"),),
}
KEYS_OUTSIDE = ("/etc/cron.d/x", "../x", "a/../../x", "a/..", "..", "a\\..\\b")
KEYS_OF_NO_PATH = ("", "a\0b", "a\nb", "é", "a" * 2000)


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def text(value: str) -> bytes:
    coded = base64.b64encode(value.encode())
    return number(len(coded)) + coded


def sealed(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big") + body


def torch_cache(entries: Entries, version: int = 1) -> bytes:
    """As torch 2.11 to 2.13 write it."""
    body = number(version)
    for kind, items in entries.items():
        body += text(kind) + number(len(items))
        for key, content in items:
            body += text(key) + number(len(content)) + content
    return sealed(body)


def test_what_torch_writes_passes() -> None:
    check_torch_cache(torch_cache(GOOD))
    check_torch_cache(torch_cache({}))


@pytest.mark.parametrize("key", [*KEYS_OUTSIDE, *KEYS_OF_NO_PATH])
def test_a_key_that_leaves_the_folder_is_refused(key: str) -> None:
    with pytest.raises(UntrustedArtifact, match="has the key"):
        check_torch_cache(torch_cache({"autotune": ((key, b"{}"),)}))


@pytest.mark.parametrize("kind", ["precompile", "", "../inductor", "Inductor"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(UntrustedArtifact, match="unknown kind"):
        check_torch_cache(torch_cache({kind: (("key", b""),)}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        torch_cache(GOOD)[:-1],
        torch_cache(GOOD) + b"x",
        torch_cache(GOOD, version=2),
        sealed(number(1) + number(2**63)),
        sealed(number(1) + text("inductor") + number(2**63)),
        sealed(number(1) + text("inductor") + number(1) + text("key") + number(2**63)),
        sealed(number(1) + number(3) + b"&&&"),
        sealed(number(1) + number(4) + base64.b64encode(b"\xff\xff\xff")),
    ],
)
def test_damage_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedArtifact, match=r"torch's compile cache"):
        check_torch_cache(data)
