"""Bring a database to the newest schema: the only module that imports alembic, when used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from registry.database import Database
from registry.revision import check_schema, schema_state

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent.parent / "migrations"
"""Beside the package, in a checkout and in an installed wheel alike."""


def upgrade(database: Database) -> str | None:
    """Run the missing migrations in one transaction, all or none; the revision before, if any.

    Any number of processes may call it at once: the first does the work, the others wait and find
    nothing left to do. Raises RegistryTooNew without changing a byte.
    """
    from alembic import command

    config = alembic_config()
    with database.write() as connection:
        state = schema_state(connection)
        if state.is_newer:
            refusal = check_schema(state, database.path)
            if refusal is not None:
                raise refusal
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return state.revision


def alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
