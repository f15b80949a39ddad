"""Opening a database: its schema, its journal, its errors."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from registry import sqlite
from registry.client import open_registry, upgrade_registry
from registry.database import WRITE_WAIT_S
from registry.errors import (
    InvalidInput,
    RegistryCorrupt,
    RegistryError,
    RegistryMissing,
    RegistryTooNew,
    RegistryTooOld,
)
from registry.location import FileLocation, locate
from registry.schema import SCHEMA_HEAD
from registry.sqlite_database import SqliteDatabase, open_database
from registry.store import Registry
from tests.registry import samples
from tests.registry.children import PYSQLITE3
from tests.registry.samples import NOW


def journal_mode(path: Path) -> str:
    driver = sqlite.best_driver()
    connection = driver.module.connect(path)
    mode = sqlite.journal_mode(connection)
    connection.close()
    return mode


def claim(path: Path, revision: str, minimum_reader: str) -> str:
    """Make the file one of another release; its digest."""
    connection = sqlite.best_driver().module.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.execute("UPDATE meta SET value = ? WHERE key = 'minimum_reader'", [minimum_reader])
    connection.commit()
    connection.close()
    return fingerprint(path)


def fingerprint(path: Path) -> str:
    """Of the file and of what lies beside it."""
    beside = sorted(other.name for other in path.parent.iterdir())
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()} {beside}"


def test_connections_are_set_up(registry: Registry) -> None:
    with open_database(registry.path, create=False).read() as connection:
        for pragma, value in {"foreign_keys": 1, "synchronous": 2, "trusted_schema": 0}.items():
            assert connection.scalar(text(f"PRAGMA {pragma}")) == value
        assert connection.scalar(text("PRAGMA busy_timeout")) == WRITE_WAIT_S * 1000


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 49, 2), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_where_wal_is_safe(version: tuple[int, int, int], safe: bool) -> None:
    assert sqlite.wal_is_safe(version) is safe


def test_wal_only_where_it_is_safe(path: Path, sqlite_driver: str) -> None:
    open_registry(path)
    expected = "wal" if sqlite.best_driver().wal_is_safe else "delete"
    assert journal_mode(path) == expected


def test_an_unsafe_sqlite_leaves_wal_before_it_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PYSQLITE3)
    if sqlite.wal_is_safe(sqlite3.sqlite_version_info):
        pytest.skip("the SQLite of this Python is safe")
    open_registry(path).publish([samples.record()], now=NOW)
    assert journal_mode(path) == "wal"
    monkeypatch.setitem(sys.modules, PYSQLITE3, None)
    older = open_registry(path, create=False)
    assert len(older.candidates()) == 1
    assert journal_mode(path) == "wal"
    older.publish([samples.record(minutes=1)], now=NOW)
    assert journal_mode(path) == "delete"
    monkeypatch.delitem(sys.modules, PYSQLITE3)
    open_registry(path).publish([samples.record(minutes=2)], now=NOW)
    assert journal_mode(path) == "delete"
    assert len(older.history()) == 3


@pytest.mark.parametrize("name", ["a b", "100%", "what?", "#1", "ä;'x", "file:x"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    registry = open_registry(tmp_path / name / name)
    registry.put_artifact("log", b"said the worker")
    assert sorted(entry.name for entry in (tmp_path / name).iterdir()) == [
        name,
        f"{name}.artifacts",
    ]


def test_nothing_is_made_unasked(path: Path) -> None:
    with pytest.raises(RegistryMissing, match=str(path)):
        open_registry(path, create=False)
    assert not path.exists()
    path.touch()
    with pytest.raises(RegistryMissing):
        open_registry(path, create=False)
    assert path.stat().st_size == 0
    assert open_registry(path).history() == ()


def test_urls_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    open_registry(f"sqlite:///{path}")
    assert path.exists()
    assert locate(tmp_path) == FileLocation(path)
    assert locate("some/registry.db") == FileLocation(Path("some/registry.db").absolute())


@pytest.mark.parametrize(
    "url",
    ["ftp://registry.example", "postgresql://u:secret@host/db", "sqlite://", "://", "sqlite:///",
     "postgresql+psycopg://u:secret@host:port/db"],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not a registry") as refusal:
        open_registry(url)
    assert "secret" not in str(refusal.value)


def test_an_older_schema_says_how_to_upgrade(path: Path) -> None:
    open_registry(path)
    before = claim(path, "0_0_9", "0_0_9")
    with pytest.raises(RegistryTooOld, match="tuner registry upgrade"):
        open_registry(path)
    with pytest.raises(RegistryCorrupt, match="no release wrote"):
        upgrade_registry(path)
    assert fingerprint(path) == before


def test_a_newer_schema_is_refused_and_unchanged(path: Path, sqlite_driver: str) -> None:
    open_registry(path).publish([samples.record()], now=NOW)
    before = claim(path, "0_10_0", "0_10_0")
    for refused in (open_registry, upgrade_registry):
        with pytest.raises(RegistryTooNew, match="0_10_0"):
            refused(path)
    assert fingerprint(path) == before


def test_a_newer_schema_marked_readable_is_read_only(path: Path, sqlite_driver: str) -> None:
    record = samples.record()
    open_registry(path).publish([record], now=NOW)
    before = claim(path, "0_10_0", SCHEMA_HEAD)
    registry = open_registry(path)
    assert [found.record for found in registry.candidates()] == [record]
    registry.note_fetch(record.id, NOW)
    with pytest.raises(RegistryTooNew):
        registry.publish([samples.record(minutes=1)], now=NOW)
    with pytest.raises(RegistryTooNew):
        registry.require_writable()
    with pytest.raises(RegistryTooNew):
        upgrade_registry(path)
    assert fingerprint(path) == before


@pytest.mark.parametrize("revision", ["head", "", "0_1_0; DROP TABLE records"])
def test_a_revision_without_a_release_is_damage(path: Path, revision: str) -> None:
    open_registry(path)
    claim(path, revision, SCHEMA_HEAD)
    with pytest.raises(RegistryCorrupt):
        open_registry(path)


def test_upgrading_is_safe_to_repeat(path: Path) -> None:
    assert upgrade_registry(path) == (None, SCHEMA_HEAD)
    assert upgrade_registry(path) == (SCHEMA_HEAD, SCHEMA_HEAD)


def test_a_busy_registry_says_so(registry: Registry) -> None:
    first = open_database(registry.path, create=False)
    second = open_database(registry.path, create=False)
    with first.write(), pytest.raises(RegistryError, match="busy"), second.write(wait_s=0):
        pass


def test_readers_do_not_wait_for_a_writer(registry: Registry) -> None:
    registry.publish([samples.record()], now=NOW)
    with open_database(registry.path, create=False).write():
        assert len(registry.candidates()) == 1


def test_an_error_inside_a_transaction_undoes_it(registry: Registry) -> None:
    database = open_database(registry.path, create=False)
    with pytest.raises(ZeroDivisionError):
        write_and_fail(database)
    with database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM meta WHERE key = 'half'")) == 0


def write_and_fail(database: SqliteDatabase) -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO meta VALUES ('half', 'done')"))
        raise ZeroDivisionError
