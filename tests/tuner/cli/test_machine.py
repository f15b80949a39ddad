"""`doctor`, `models`, `space` and `completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.errors import DeviceError, InvalidInput
from registry.inventory import ModelInventory
from tuner import catalog
from tuner.cli.main import run
from tuner.inventories import inventory_key
from tuner.models import resolve_model

ROOT = Path(__file__).parents[3]
Captured = pytest.CaptureFixture[str]
FLUX = Path(__file__).parents[2] / "data" / "flux-dev-inventory.json"


def test_doctor_of_a_sound_machine(home: Path, capsys: Captured) -> None:
    assert run(["doctor", "--gpu", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert report["environment"]["hardware"]["device"] == "cpu"
    assert not report["problems"]
    found = {item["name"]: item for item in report["capabilities"]}
    assert found["int8 weight-only"]["available"]
    assert not found["float8 compute"]["available"]
    assert found["float8 compute"]["reason"]
    assert run(["doctor", "--gpu", "cpu"]) == 0
    assert "ready" in capsys.readouterr().out


def test_doctor_tells_what_is_missing(
    home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.installed.torch_build", lambda: None)
    assert run(["doctor", "--gpu", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "torch is missing" in text
    assert "pip install" in text


def test_doctor_tells_of_a_base_that_cannot_be_used(
    home: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, base = tmp_path / "own.sqlite3", tmp_path / "base.sqlite3"
    open_registry(own)
    base.write_bytes(b"no database" * 1000)
    monkeypatch.setenv("TUNER_REGISTRY_BASE", str(base))
    assert run(["doctor", "--gpu", "cpu", "--json", "--registry", str(own)]) == 1
    assert "base registry" in capsys.readouterr().out


def test_doctor_tells_of_a_registry_that_cannot_be_used(
    home: Path, capsys: Captured, tmp_path: Path
) -> None:
    broken = tmp_path / "plans.db"
    broken.write_bytes(b"not a database" * 100)
    assert run(["doctor", "--gpu", "cpu", "--json", "--registry", str(broken)]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert str(broken) in problem


def test_doctor_tells_of_a_home_that_cannot_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("TUNER_HOME", "/proc/nope")
    assert run(["doctor", "--gpu", "cpu", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len([text for text in problems if text.startswith("/proc/nope/")]) == 3
    assert "TUNER_HOME names another place" in problems[0]


def test_doctor_of_a_gpu_that_is_not_there(home: Path, capsys: Captured) -> None:
    assert run(["doctor", "--gpu", "77"]) in {DeviceError.exit_code, InvalidInput.exit_code}
    assert "'77'" in capsys.readouterr().err


def test_models_lists_the_catalog(capsys: Captured) -> None:
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in listed] == list(catalog.names())
    assert all("components" not in model for model in listed)
    folders = {model["name"]: model["weights_folder"] for model in listed}
    shipped = {name: Path(folder) for name, folder in folders.items() if folder is not None}
    assert set(shipped) == {"shapes-flux"}
    assert (shipped["shapes-flux"] / "model_index.json").is_file()
    assert run(["models"]) == 0
    text = capsys.readouterr().out
    lines = {name: line for line in text.splitlines() for name in catalog.names() if name in line}
    assert set(lines) == set(catalog.names())
    assert "shipped" in lines["shapes-flux"]
    assert "random weights only" not in lines["shapes-flux"]


def put_inventory(home: Path, model: str) -> ModelInventory:
    """The default registry of `home` knows FLUX.1-dev's inventory under the name of `model`."""
    folder = home / ".local" / "share" / "tuner"
    inventory = ModelInventory.model_validate_json(FLUX.read_text())
    registry = open_registry(folder / "registry.sqlite3")
    key = inventory_key(resolve_model(model, weights="random"))
    registry.put_inventory(key, inventory, datetime.now(UTC))
    return inventory


ASKED = ["space", "--gpu", "cpu", "--model", "flux-dev", "--weights", "random"]


def test_space_says_why_each_plan_was_dropped(home: Path, capsys: Captured) -> None:
    put_inventory(home, "flux-dev")
    assert run([*ASKED, "--vram", "40GB", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["candidates"]
    assert all(item["estimate"]["peak_vram_bytes"] > 0 for item in answer["candidates"])
    assert all(item["reason"] and item["stage"] for item in answer["dropped"])
    assert "rule" in {item["stage"] for item in answer["dropped"]}


def test_space_as_a_table_has_every_reason_once(home: Path, capsys: Captured) -> None:
    put_inventory(home, "flux-dev")
    assert run([*ASKED, "--vram", "1GB"]) == 0
    text = capsys.readouterr().out
    assert "0 candidates" in text
    assert text.count("predicted over the budget") == 1
    assert "The smallest budget that is predicted to hold any plan" in text
    assert run([*ASKED, "--vram", "40GB", "--all"]) == 0
    assert "bf16 · eager · resident" in capsys.readouterr().out


def test_space_refuses_a_size_the_model_cannot_make(home: Path, capsys: Captured) -> None:
    put_inventory(home, "flux-dev")
    assert run([*ASKED, "--vram", "40GB", "--resolution", "1000x1023"]) == 2
    assert "1000x1023 cannot be made by flux-dev" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str, capsys: Captured) -> None:
    assert run(["completion", shell]) == 0
    assert "_TUNER_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tuner get-p", {"get-plan"}),
        ("tuner get-plan --model tiny-", {"tiny-flux", "tiny-sdxl"}),
        ("tuner run --policy s", {"strict"}),
        ("tuner registry ", {"check", "path", "upgrade"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], tmp_path: Path) -> None:
    """The script in a real bash, its function called as bash calls it for the words typed."""
    program = tmp_path / "tuner"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tuner "$@"\n')
    program.chmod(0o755)
    words = typed.split(" ")
    code = (
        'source <(tuner completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        " complete -p tuner >/dev/null || exit 9; _tuner_completion tuner;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    child = subprocess.run(
        ["bash", "-c", code, "bash", *words],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert set(child.stdout.split()) == offered


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tuner get-plan --model tiny-", {"tiny-flux", "tiny-sdxl"}),
        ("tuner get-p", {"get-plan"}),
        ("tuner registry up", {"upgrade"}),
    ],
)
def test_names_complete(typed: str, offered: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    child = subprocess.run(
        [sys.executable, "-c", "from tuner.cli.main import main; main()"],
        env={**os.environ, **words, "_TUNER_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert {line.partition(",")[2] for line in child.stdout.splitlines()} == offered
