"""Which schema a database has, and what this release may do with it, without alembic."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select

from registry.errors import RegistryCorrupt, RegistryTooNew, RegistryTooOld
from registry.schema import ALEMBIC_VERSION, META, SCHEMA_HEAD

_RELEASE = re.compile(r"\d+(_\d+)*")


@dataclass(frozen=True)
class SchemaState:
    """What a database says about itself; both None where it is empty."""

    revision: str | None
    minimum_reader: str | None = None

    @property
    def is_newer(self) -> bool:
        return self.revision is not None and release(self.revision) > release(SCHEMA_HEAD)

    @property
    def is_older(self) -> bool:
        return self.revision is not None and release(self.revision) < release(SCHEMA_HEAD)

    @property
    def is_readable(self) -> bool:
        """Whether this release may read it, though a newer one wrote it."""
        oldest = self.minimum_reader
        return oldest is not None and release(oldest) <= release(SCHEMA_HEAD)


def release(revision: str) -> tuple[int, ...]:
    """ "0_1_0" as (0, 1, 0). Raises RegistryCorrupt on anything else."""
    if not _RELEASE.fullmatch(revision):
        raise RegistryCorrupt(f"schema revision {revision!r} is not named by a release")
    return tuple(int(part) for part in revision.split("_"))


def schema_state(connection: Connection) -> SchemaState:
    """Read in the caller's transaction. Raises RegistryCorrupt."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return SchemaState(None)
    if not tables.issuperset({ALEMBIC_VERSION.name, META.name}):
        raise RegistryCorrupt(
            "the database has tables, but is not a registry (no schema version in it)",
            hint="Choose another with --registry.",
        )
    revisions = connection.scalars(select(ALEMBIC_VERSION.c.version_num)).all()
    if len(revisions) != 1:
        raise RegistryCorrupt(f"the registry names {len(revisions)} schema revisions, not one")
    query = select(META.c.value).where(META.c.key == "minimum_reader")
    return SchemaState(revisions[0], connection.scalar(query))


def check_schema(state: SchemaState, name: str) -> RegistryTooNew | None:
    """None where this release may read and write, the error for writers where it may only read.

    Raises RegistryTooNew and RegistryTooOld.
    """
    if state.is_older:
        raise RegistryTooOld(
            f"registry {name} has schema {state.revision}; this release needs {SCHEMA_HEAD}",
            hint="Run `tuner registry upgrade`.",
        )
    if not state.is_newer:
        return None
    if not state.is_readable:
        raise too_new(state, name)
    return too_new(state, name)


def too_new(state: SchemaState, name: str) -> RegistryTooNew:
    return RegistryTooNew(
        f"registry {name} has schema {state.revision}, written by a newer release; "
        f"this release writes {SCHEMA_HEAD}. Nothing was changed",
        hint="Upgrade this installation, or choose another registry with --registry.",
    )
