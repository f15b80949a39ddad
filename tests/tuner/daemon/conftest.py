from __future__ import annotations

from pathlib import Path

import pytest

from registry.client import open_registry
from registry.store import Registry
from tests.tuner.daemon.machine import DaemonMachine


@pytest.fixture
def machine(tmp_path: Path) -> DaemonMachine:
    return DaemonMachine(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path / "registry.sqlite3")
