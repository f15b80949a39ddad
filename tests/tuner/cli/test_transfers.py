"""`tuner export`, `import`, `push` and `pull`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.signing import SigningKeys
from tests.registry import samples
from tests.tuner.cli import example_registry as example
from tuner.cli.main import run
from tuner.config import load_settings
from tuner.inventories import inventory_key
from tuner.models import resolve_model

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "source.sqlite3"
    registry, _, _ = example.make(path)
    key = inventory_key(resolve_model("tiny-flux", weights="random"))
    registry.put_inventory(key, samples.inventory(), example.NOW)
    return path


def test_a_bundle_goes_from_machine_to_machine(
    source: Path, tmp_path: Path, capsys: Captured
) -> None:
    file, target = str(tmp_path / "plans.bundle"), str(tmp_path / "target.sqlite3")
    assert run(["export", file, "--model", "tiny-flux", "--registry", str(source)]) == 0
    assert "1 record written" in capsys.readouterr().out
    assert run(["import", file, "--registry", target, "--json"]) == 0
    newer = open_registry(source).candidates()[0].record
    assert json.loads(capsys.readouterr().out) == {"new": [newer.id], "known": 0, "left_out": []}
    assert run(["import", file, "--registry", target]) == 0
    assert capsys.readouterr().out == "0 new, 1 already there\n"
    key = inventory_key(resolve_model("tiny-flux", weights="random"))
    assert open_registry(target).inventory(key) == samples.inventory()


def test_a_strangers_bundle_has_its_own_exit_code(
    source: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = str(tmp_path / "plans.bundle"), str(tmp_path / "target.sqlite3")
    assert run(["export", file, "--registry", str(source)]) == 0
    maker = SigningKeys(load_settings().config_dir).public_key
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "another"))
    assert run(["import", file, "--registry", target]) == 8
    assert maker.key_id in capsys.readouterr().err
    assert run(["keys", "trust", "maker", maker.public_key]) == 0
    assert run(["import", file, "--registry", target]) == 0


def test_records_are_pushed_and_pulled(
    source: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = str(tmp_path / "first.sqlite3"), str(tmp_path / "second.sqlite3")
    newer = open_registry(source).candidates()[0].record
    assert run(["push", newer.id[:12], "--to", first, "--registry", str(source)]) == 4
    assert "no registry" in capsys.readouterr().err
    assert run(["registry", "upgrade", "--registry", first]) == 0
    monkeypatch.setenv("TUNER_REGISTRY_BASE", str(source))  # of no matter here
    assert run(["push", newer.id[:12], "--to", first, "--registry", str(source)]) == 0
    assert "1 new, 0 already there" in capsys.readouterr().out
    assert run(["pull", "--from", first, "--model", "tiny-flux", "--registry", second]) == 0
    assert open_registry(second).record(newer.id).record == newer
    assert run(["pull", newer.id, "--model", "x", "--from", first, "--registry", second]) == 2


def test_a_base_answers_where_there_is_no_own_registry(
    source: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_REGISTRY_BASE", str(source))
    newer = open_registry(source).candidates()[0].record
    for own in ("none.sqlite3", "made.sqlite3"):
        assert run(["show", newer.id[:12], "--json", "--registry", str(tmp_path / own)]) == 0
        assert newer.id in capsys.readouterr().out
        assert run(["registry", "upgrade", "--registry", str(tmp_path / "made.sqlite3")]) == 0
        capsys.readouterr()
