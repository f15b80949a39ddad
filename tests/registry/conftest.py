from __future__ import annotations

import sys
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.store import Registry

HIDDEN = "pysqlite3.dbapi2"


@pytest.fixture(params=["newest", "python's own"])
def sqlite_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With pysqlite3 (WAL), where it is installed, and without (rollback journal)."""
    if request.param == "newest":
        pytest.importorskip(HIDDEN)
    else:
        monkeypatch.setitem(sys.modules, HIDDEN, None)
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture
def registry(path: Path) -> Registry:
    return open_registry(path)
