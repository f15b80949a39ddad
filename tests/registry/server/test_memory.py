"""Answers that are remembered, and fetches that are counted later."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.server.memory import Answer, Fetches, Memory
from registry.store import Registry
from tests.registry import samples
from tests.registry.children import PYSQLITE3
from tests.registry.samples import NOW


class Maker:
    def __init__(self, body: bytes = b"answer") -> None:
        self.body, self.made = body, 0

    def __call__(self) -> Answer:
        self.made += 1
        return Answer.of(self.body, "record")


@pytest.fixture
def registry(registry: Registry) -> Registry:
    pytest.importorskip(PYSQLITE3)
    return registry


def test_any_write_makes_another_version(registry: Registry) -> None:
    """By whoever: this object, or another on the same file."""
    other = open_registry(registry.path, create=False)
    seen = [registry.version()]
    writes: list[Callable[[], object]] = [
        lambda: registry.publish([samples.record()], now=NOW),
        lambda: other.publish([samples.record(threads=2)], now=NOW),
        lambda: other.note_fetch(samples.record().id, NOW),
        lambda: registry.put_artifact("log", b"x"),
    ]
    for write in writes:
        assert registry.version() == seen[-1]
        registry.candidates()
        assert registry.version() == seen[-1]
        write()
        seen.append(registry.version())
    assert len(set(seen)) == len(seen)


def test_an_sqlite_without_safe_wal_is_not_in_its_own_way(
    path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PYSQLITE3, None)
    shutil.copy(empty, path)
    registry = open_registry(path, create=False)
    assert registry.version() is None
    registry.publish([samples.record()], now=NOW)
    assert registry.version() is None


def test_another_file_in_its_place_is_another_version(registry: Registry, empty: Path) -> None:
    before = registry.version()
    registry.path.unlink()
    assert registry.version() is None
    shutil.copy(empty, registry.path)
    assert registry.version() not in (None, before)


def test_an_answer_is_made_once_while_nothing_changes(registry: Registry) -> None:
    memory, maker = Memory(registry), Maker()
    first = memory.answer("question", maker)
    assert memory.answer("question", maker) is first
    memory.answer("another", maker)
    assert maker.made == 2
    registry.publish([samples.record()], now=NOW)
    memory.answer("question", maker)
    assert maker.made == 3


def test_what_changes_while_an_answer_is_made_is_not_missed(registry: Registry) -> None:
    memory, maker = Memory(registry), Maker()

    def slow() -> Answer:
        registry.publish([samples.record()], now=NOW)
        return maker()

    memory.answer("question", slow)
    memory.answer("question", maker)
    assert maker.made == 2


def test_the_memory_is_bounded(registry: Registry) -> None:
    memory, maker = Memory(registry, kept_bytes=10_000), Maker(b"x" * 100)
    for question in ("a", "b", "a", "c"):  # b was asked for longest ago
        memory.answer(question, maker)
    assert maker.made == 3
    memory.answer("a", maker)
    assert maker.made == 3
    memory.answer("b", maker)
    assert maker.made == 4
    memory.answer("too large", Maker(b"x" * 9999))
    assert memory._bytes == 0


def test_without_a_version_nothing_is_remembered(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "version", lambda: None)
    memory, maker = Memory(registry), Maker()
    for _ in range(2):
        memory.answer("question", maker)
    assert maker.made == 2


def test_fetches_are_written_now_and_then(registry: Registry) -> None:
    record, now_s = samples.record(), 0.0
    registry.publish([record], now=NOW)
    fetches = Fetches(registry, every_s=10, monotonic_s=lambda: now_s, now=lambda: NOW)
    for now_s in (1.0, 2.0):  # noqa: B007 (read by the clock)
        fetches.note(record.id)
        fetches.note("f" * 64)
    assert registry.record(record.id).fetches == 0
    now_s = 10.0
    fetches.note(record.id)
    assert registry.record(record.id).fetches == 3
    fetches.note(record.id)
    fetches.write()
    assert registry.record(record.id).fetches == 4
