"""The app's side: an artifact that cannot be used never keeps an app from starting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.errors import RegistryCorrupt, UntrustedArtifact
from registry.record import ArtifactRef
from tuner.app import _load_artifacts

CACHE = ArtifactRef(kind="compile_cache", sha256="0" * 64, size_bytes=4)


def answer(trusted_path: Callable[[ArtifactRef], Path], *, apply: bool = True) -> Any:
    stored = SimpleNamespace(record=SimpleNamespace(artifacts=(CACHE,)))
    return SimpleNamespace(artifacts_apply=apply, stored=stored, trusted_path=trusted_path)


@pytest.mark.parametrize(
    "error",
    [
        UntrustedArtifact("is not signed"),
        RegistryCorrupt("bytes differ"),
        FileNotFoundError("gone"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named(error: Exception) -> None:
    def refuse(_: ArtifactRef) -> Path:
        raise error

    assert _load_artifacts(answer(refuse)) == f"refused: {error}"


def test_bytes_other_than_the_signed_ones_never_reach_torch(tmp_path: Path) -> None:
    other = tmp_path / "cache.bin"
    other.write_bytes(b"evil")
    assert _load_artifacts(answer(lambda _: other)).startswith("refused: compile cache")


def test_artifacts_of_another_environment_are_left_alone() -> None:
    def never(_: ArtifactRef) -> Path:
        raise AssertionError

    assert _load_artifacts(answer(never, apply=False)) == "none"
