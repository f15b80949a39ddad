"""The SQLite registry passes the suite that every backend must pass, on each SQLite at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.client import open_registry
from registry.store import Registry
from tests.registry.conformance import RegistryConformance


class TestSqliteRegistry(RegistryConformance):
    @pytest.fixture
    def registry(self, tmp_path: Path, sqlite_driver: str) -> Registry:
        return open_registry(tmp_path / "registry.sqlite3")
