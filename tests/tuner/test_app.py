"""The app's side: an artifact that cannot be used never keeps an app from starting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.errors import InvalidInput, RegistryCorrupt, UntrustedArtifact
from registry.plan import PipelineOptions, Plan
from registry.record import ArtifactRef, WarmStart
from tuner.app import _Code, _load_report, _use_artifacts, apply

CACHE = ArtifactRef(kind="compile_cache", sha256="0" * 64, size_bytes=4)


def answer(trusted_bytes: Callable[[ArtifactRef], bytes], *, apply: bool = True) -> Any:
    stored = SimpleNamespace(record=SimpleNamespace(artifacts=(CACHE,)))
    return SimpleNamespace(
        artifacts_apply=apply,
        stored=stored,
        trusted_bytes=trusted_bytes,
        code_folder=Path("/nonexistent"),
    )


@pytest.mark.parametrize(
    "error",
    [
        UntrustedArtifact("is not signed"),
        RegistryCorrupt("bytes differ"),
        FileNotFoundError("gone"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: ArtifactRef) -> bytes:
        raise error

    code = _use_artifacts(answer(refuse))
    assert (code.told, code.rung) == (f"refused: {error}", "compile")
    assert code.refused == (str(error),)
    assert code.counted() == WarmStart(rung="compile")
    assert [line.getMessage() for line in caplog.records] == [
        f"compile artifacts not used: {error}"
    ]


def test_bytes_that_are_no_compiled_code_never_reach_torch() -> None:
    assert _use_artifacts(answer(lambda _: b"evil")).told.startswith("refused: not compiled code")


def test_artifacts_of_another_environment_are_left_alone() -> None:
    def never(_: ArtifactRef) -> bytes:
        raise AssertionError

    code = _use_artifacts(answer(never, apply=False))
    assert (code.told, code.rung, code.refused) == ("none", "compile", ())


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


def test_a_report_counts_when_it_is_asked() -> None:
    """Nothing is compiled before the first image."""
    taken = [WarmStart(rung="compile_cache", graph_hits=count) for count in (0, 3)]
    known = answer(lambda _: b"")
    for name, value in KNOWN.items():
        setattr(known, name, value)
    code = _Code(is_used=True, counted=iter(taken).__next__)
    report = _load_report(known, code, load_s=1.5).asking(code.counted, iter([7]).__next__)
    assert (report.artifacts, report.rung, report.start_saved_s) == ("loaded", "compile_cache", 7.5)
    assert [report.warm_start, report.warm_start] == taken
    assert report.peak_vram_bytes == 7
    cold = _load_report(known, _Code(), load_s=1.5)
    assert (cold.artifacts, cold.rung, cold.start_saved_s) == ("none", "compile", None)
    assert cold.warm_start == WarmStart(rung="compile")
    assert cold.peak_vram_bytes is None


KNOWN: dict[str, Any] = {
    "match": "exact",
    "plan": SimpleNamespace(digest="0" * 64),
    "record_id": "1" * 64,
    "measurement": SimpleNamespace(start_saved_s=7.5),
    "notes": (),
}
