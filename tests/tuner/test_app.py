"""The app's side: an artifact that cannot be used never keeps an app from starting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.errors import InvalidInput, RegistryCorrupt, UntrustedArtifact
from registry.plan import PipelineOptions, Plan
from registry.record import ArtifactRef
from tuner.app import _load_artifacts, apply

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


@pytest.mark.parametrize("plan", [{"format": 1}, "a plan", None])
def test_what_is_no_plan_is_refused_by_its_type(plan: Any) -> None:
    with pytest.raises(InvalidInput, match="is not a plan") as raised:
        apply(SimpleNamespace(components={}), plan)
    assert "parse_plan" in str(raised.value)


@pytest.mark.parametrize("pipe", ["a pipeline", None])
def test_what_is_no_pipeline_is_refused_by_its_type(pipe: Any) -> None:
    plan = Plan(pipeline=PipelineOptions(components={}))
    with pytest.raises(InvalidInput, match=f"{type(pipe).__name__} is not a diffusers pipeline"):
        apply(pipe, plan)
