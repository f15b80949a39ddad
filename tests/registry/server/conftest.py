from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.server.serving import Served, served


@pytest.fixture(scope="module")
def service(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for the tests of a module, which takes signed records only."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(empty, folder / "registry.sqlite3")
    with served(folder / "registry.sqlite3", folder) as found:
        yield found


@pytest.fixture
def fresh(service: Served, empty: Path) -> Served:
    """The same service over an empty registry: no connection outlives a transaction."""
    database = service.registry.path
    for path in database.parent.glob(f"{database.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(empty, database)
    return service
