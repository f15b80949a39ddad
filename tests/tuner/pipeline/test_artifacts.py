"""Compile caches: bytes that run code, so none reaches torch before its digest is right."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from registry.errors import UntrustedArtifact
from tuner.pipeline.artifacts import compile_counters, load_compile_cache, save_compile_cache


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What torch was given."""
    seen: list[bytes] = []

    def record(data: bytes) -> object:
        seen.append(data)
        return object() if data == b"a cache" else None

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", record)
    return seen


def written(tmp_path: Path, data: bytes) -> tuple[Path, str]:
    path = tmp_path / "cache.bin"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_the_very_bytes_of_the_digest_are_loaded(tmp_path: Path, given: list[bytes]) -> None:
    assert load_compile_cache(*written(tmp_path, b"a cache"))
    assert given == [b"a cache"]


@pytest.mark.parametrize("bad", [b"a cachf", b"", b"a cache and more"])
def test_other_bytes_never_reach_torch(tmp_path: Path, given: list[bytes], bad: bytes) -> None:
    path, digest = written(tmp_path, b"a cache")
    path.write_bytes(bad)
    with pytest.raises(UntrustedArtifact, match=rf"cache\.bin has digest .* is for {digest}"):
        load_compile_cache(path, digest)
    assert given == []


def test_the_file_is_read_once(
    tmp_path: Path, given: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is loaded: nobody can change the file in between."""
    path, digest = written(tmp_path, b"a cache")
    reads: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(self: Path) -> bytes:
        reads.append(self)
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    load_compile_cache(path, digest)
    assert reads == [path]


def test_a_cache_that_torch_refuses(tmp_path: Path, given: list[bytes]) -> None:
    assert not load_compile_cache(*written(tmp_path, b"of another torch"))
    assert given == [b"of another torch"]


def test_nothing_compiled_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert save_compile_cache(tmp_path / "cache.bin") == 0
    assert not (tmp_path / "cache.bin").exists()


def test_a_cache_is_written_as_torch_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"12345", object()))
    assert save_compile_cache(tmp_path / "cache.bin") == 5
    assert (tmp_path / "cache.bin").read_bytes() == b"12345"


def test_counters_count_graphs_and_breaks() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert set(compile_counters().values()) == {0}

    def broken(value: torch.Tensor) -> torch.Tensor:
        value = value + 1
        torch._dynamo.graph_break()
        return value * 2

    torch.compile(broken, backend="eager")(torch.ones(2))
    counted = compile_counters()
    assert counted["graphs"] == 2
    assert counted["graph_breaks"] == 1
    torch._dynamo.reset()
