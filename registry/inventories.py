"""Model inventories: made once by a worker, kept per model and library versions."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from registry.errors import RegistryTooNew
from registry.inventory import ModelInventory
from registry.rows import AnyRow, parsed, sealed, to_time
from registry.schema import INVENTORIES


def put(connection: Connection, key: str, inventory: ModelInventory, now: datetime) -> None:
    """Replace what is there."""
    connection.execute(delete(INVENTORIES).where(INVENTORIES.c.key == key))
    values = {"key": key, "made_at": to_time(now), **sealed(inventory)}
    connection.execute(insert(INVENTORIES).values(**values))


def get(connection: Connection, key: str) -> ModelInventory | None:
    """None where there is none, or where another release wrote it in its own words: it can be made
    again. Raises RegistryCorrupt."""
    row = connection.execute(select(INVENTORIES).where(INVENTORIES.c.key == key)).one_or_none()
    try:
        return None if row is None else inventory_of(row)
    except RegistryTooNew:
        return None


def inventory_of(row: AnyRow) -> ModelInventory:
    """Raises RegistryCorrupt, RegistryTooNew."""
    return parsed(ModelInventory, row, f"inventory {row.key}")
