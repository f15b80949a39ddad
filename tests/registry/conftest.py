from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.store import Registry
from tests.registry.children import PYSQLITE3


@pytest.fixture(params=["newest", "python's own"])
def sqlite_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With pysqlite3 (WAL), where it is installed, and without (rollback journal)."""
    if request.param == "newest":
        pytest.importorskip(PYSQLITE3)
    else:
        monkeypatch.setitem(sys.modules, PYSQLITE3, None)
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new registry's file, to be copied: making one runs every migration."""
    path = tmp_path_factory.mktemp("empty") / "registry.sqlite3"
    open_registry(path)
    return path


@pytest.fixture
def registry(path: Path, empty: Path) -> Registry:
    shutil.copy(empty, path)
    return open_registry(path, create=False)
