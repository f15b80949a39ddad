"""The SQLite registry passes the suite that every backend must pass, on each SQLite at hand."""

from __future__ import annotations

import pytest

from tests.registry.conformance import RegistryConformance


@pytest.mark.usefixtures("sqlite_driver")
class TestSqliteRegistry(RegistryConformance):
    """`registry` is a file; without pysqlite3 its first write leaves WAL mode."""
