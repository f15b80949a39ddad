"""Bring a database to the newest schema. Imported only when that is asked for: alembic is slow."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from registry.errors import RegistryCorrupt
from registry.revision import schema_state, too_new
from registry.schema import SCHEMA_HEAD

MIGRATIONS = Path(__file__).parent.parent / "migrations"
"""Beside the package, in a checkout and in an installed wheel alike."""


def migrate(connection: Connection, name: str) -> str | None:
    """Run the missing migrations in the caller's write transaction; the revision before, if any.

    Raises RegistryTooNew and RegistryCorrupt (a revision nobody released) with nothing changed.
    """
    state = schema_state(connection)
    if state.is_newer:
        raise too_new(state, name)
    if state.revision == SCHEMA_HEAD:
        return state.revision
    config = alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise RegistryCorrupt(
            f"registry {name} has schema {state.revision}, which no release wrote ({error})"
        ) from error
    return state.revision


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
