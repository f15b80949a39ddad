"""What was uploaded and never published does not stay."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.server.upkeep import collecting
from registry.store import Registry
from tests.registry import samples
from tests.registry.samples import NOW


@pytest.fixture
def registry(empty: Path, tmp_path: Path) -> Registry:
    shutil.copy(empty, tmp_path / "registry.sqlite3")
    return open_registry(tmp_path / "registry.sqlite3", create=False)


class Clock:
    """Says the times given, one a call; `asked` is set when the last is."""

    def __init__(self, *times: datetime) -> None:
        self._times = list(times)
        self.asked = threading.Event()

    def __call__(self) -> datetime:
        if len(self._times) == 1:
            self.asked.set()
            return self._times[0]
        return self._times.pop(0)


def test_what_no_record_names_is_removed_after_a_day(registry: Registry) -> None:
    named = registry.put_artifact("log", b"of a record")
    registry.publish([samples.record(artifacts=(named,))], now=NOW)
    loose = registry.put_artifact("log", b"of none")
    now = datetime.now(UTC)
    with collecting(registry, now=lambda: now):
        pass
    assert registry.read_artifact(loose) == b"of none"
    clock = Clock(now, now + timedelta(days=2))
    with collecting(registry, every_s=0, now=clock):
        assert clock.asked.wait(60)
    kept = registry.path.with_name("registry.sqlite3.artifacts")
    assert [path.name for path in kept.rglob("*") if path.is_file()] == [named.sha256]


def test_a_registry_that_is_gone_ends_nothing(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.path.unlink()
    clock = Clock(NOW, NOW, NOW)
    with collecting(registry, every_s=0, now=clock):
        assert clock.asked.wait(60)
    assert "nothing was removed" in caplog.text
