"""`tuner model-error`: what it prints, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tuner.cli import example_registry as example
from tests.tuner.study_bench import StudyBench
from tuner.cli.main import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = StudyBench(tmp_path_factory.mktemp("studies"))
    bench.run()
    return str(bench.registry.path)


def test_errors_are_printed_by_every_axis(database: str, home: Path, capsys: Captured) -> None:
    assert run(["model-error", "--registry", database, "--worst", "2"]) == 0
    printed = capsys.readouterr().out
    for part in ("Device peak", "A request", "family", "flux", "resolution", "64x64", "placement"):
        assert part in printed
    assert "Worst: device peak" in printed
    assert "repeats a plan of its study" in printed


def test_json_has_the_same_and_names_the_worst(database: str, home: Path, capsys: Captured) -> None:
    assert run(["model-error", "--registry", database, "--json", "--worst", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] > 3
    assert found["overall"]["peak"]["count"] <= found["trials"]
    assert found["by"]["source"].keys() == {"roofline", "roofline+trials"}
    (worst,) = found["worst"]["peak"]
    study, _, number = worst["trial"].partition("/")
    assert run(["show", study, "--registry", database, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["trials"][int(number) - 1]
    predicted, measured = shown["estimate"], shown["measurement"]["memory"]
    assert worst["error"] == pytest.approx(
        predicted["peak_vram_bytes"] / measured["peak_vram_bytes"] - 1
    )


def test_a_group_is_held_out(database: str, home: Path, capsys: Captured) -> None:
    asked = ["model-error", "--registry", database, "--hold-out", "source=roofline+trials"]
    assert run(asked) == 0
    assert "source=roofline+trials: " in capsys.readouterr().out
    assert run([*asked, "--json"]) == 0
    (apart,) = json.loads(capsys.readouterr().out)["held_out"]
    assert apart["taught_by"] == 1
    assert run(["model-error", "--registry", database, "--hold-out", "colour=red"]) == 2
    assert "'colour=red' is not a group" in capsys.readouterr().err


def test_a_registry_without_such_trials_says_so(home: Path, capsys: Captured) -> None:
    example.make(home / "plans.db")
    asked = ["model-error", "--registry", str(home / "plans.db"), "--model", "sdxl"]
    assert run(asked) == 0
    assert "No trial of this registry" in capsys.readouterr().out
    assert run(["model-error", "--registry", str(home / "nothing.db")]) == 4
