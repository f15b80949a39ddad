"""`tuner registry` and how every command meets a registry it cannot use."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.schema import SCHEMA_HEAD
from tuner.cli.main import run

Captured = pytest.CaptureFixture[str]
READERS = (["history"], ["show", "abcd"], ["registry", "check"], ["revoke", "ab", "--reason", "x"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "plans.db"
    open_registry(made)
    return made


def test_upgrade_makes_then_has_nothing_to_do(tmp_path: Path, capsys: Captured) -> None:
    command = ["registry", "upgrade", "--registry", str(tmp_path / "new" / "plans.db")]
    assert run(command) == 0
    assert run(command) == 0
    made, again = capsys.readouterr().out.splitlines()
    assert made == f"made a new registry with schema {SCHEMA_HEAD}"
    assert again == f"nothing to do: schema {SCHEMA_HEAD} is the newest"


def test_path_prefers_the_option_to_the_variable(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_REGISTRY", str(tmp_path / "variable.db"))
    assert run(["registry", "path"]) == 0
    assert run(["registry", "path", "--registry", str(tmp_path / "option.db")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "variable.db"),
        str(tmp_path / "option.db"),
    ]


def test_path_of_a_server_holds_no_password(capsys: Captured) -> None:
    url = "postgresql+psycopg://me:secret@host/tuner?artifacts=/mnt/tuner"
    assert run(["registry", "path", "--registry", url]) == 0
    assert capsys.readouterr().out == "postgresql+psycopg://me:***@host/tuner\n"


def test_check_of_a_sound_registry(path: Path, capsys: Captured) -> None:
    assert run(["registry", "check", "--registry", str(path)]) == 0
    assert capsys.readouterr().out == "no damage found\n"
    assert run(["registry", "check", "--json", "--registry", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"healthy": True, "problems": []}


def test_check_of_a_damaged_registry(path: Path, capsys: Captured) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO inventories VALUES ('k', '2026-01-01T00:00:00.000000Z', X'7B7D', 'no')"
        )
    connection.close()
    assert run(["registry", "check", "--json", "--registry", str(path)]) == 4
    report = json.loads(capsys.readouterr().out)
    assert not report["healthy"]
    assert len(report["problems"]) == 1


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_no_registry_is_told_and_none_is_made(
    command: list[str], tmp_path: Path, capsys: Captured
) -> None:
    nowhere = tmp_path / "nowhere.db"
    assert run([*command, "--registry", str(nowhere)]) == 4
    assert str(nowhere) in capsys.readouterr().err
    assert not nowhere.exists()


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_a_file_that_is_no_registry(command: list[str], tmp_path: Path, capsys: Captured) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG" * 400)
    assert run([*command, "--registry", str(picture)]) == 4
    assert "Error: " in capsys.readouterr().err
    assert picture.read_bytes() == b"\x89PNG" * 400


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_a_newer_registry_is_left_alone(command: list[str], path: Path, capsys: Captured) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9_0_0'")
        connection.execute("UPDATE meta SET value = '9_0_0' WHERE key = 'minimum_reader'")
    connection.close()
    before = path.read_bytes()
    assert run([*command, "--registry", str(path)]) == 4
    assert "newer release" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_url_of_another_kind(capsys: Captured) -> None:
    assert run(["history", "--registry", "ftp://example.org/plans"]) == 2
    assert "ftp://example.org/plans" in capsys.readouterr().err


def test_a_place_where_nothing_can_be_made(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").touch()
    assert run(["registry", "upgrade", "--registry", str(tmp_path / "file" / "plans.db")]) == 4
    assert str(tmp_path / "file") in capsys.readouterr().err
