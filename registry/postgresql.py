"""A registry in PostgreSQL, for fleets: transactions, errors, and the check of its schema.

Writers take one advisory lock for the length of their transaction, so they come one after another
as they do in an SQLite file, and code above needs no second way of thinking. A registry is written
to some times a minute; what it gives up is speed that nobody asks of it. Readers take no lock.
The lock and every setting end with the transaction, so that a pooler may hand out connections by
transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from registry.database import WRITE_WAIT_S, Database
from registry.errors import (
    InvalidInput,
    RegistryCorrupt,
    RegistryError,
    RegistryFull,
    RegistryMissing,
    RegistryReadOnly,
)
from registry.revision import check_schema, schema_state, too_new
from registry.schema import ALEMBIC_VERSION, SCHEMA_HEAD

CONNECT_TIMEOUT_S = 10
WRITER_LOCK = 0x74756E6572
""""tuner" in ASCII: the key of the advisory lock, which counts for one database."""

# A host that is gone must not hold the lock for the two hours that TCP would wait: the server asks
# after 30 s of silence, and gives up 30 s later.
_SETTINGS = text(
    "SELECT set_config('lock_timeout', :wait, true), set_config('tcp_keepalives_idle', '30', true),"
    " set_config('tcp_keepalives_interval', '10', true),"
    " set_config('tcp_keepalives_count', '3', true)"
)
_NO_DATABASE = re.compile('database ".*" does not exist')
_LOCK = text("SELECT pg_advisory_xact_lock(:key)")


class PostgresqlDatabase(Database):
    """One database of a server, all of it a registry's."""

    def __init__(self, url: URL) -> None:
        super().__init__(url.render_as_string(hide_password=True))
        self._engine = _engine(url, self.name)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._translated(), self._engine.connect() as bare:
            connection = bare.execution_options(**options)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, *, wait_s: float = WRITE_WAIT_S) -> Iterator[Connection]:
        if self.refusal is not None:
            raise self.refusal
        with self.locked(wait_s) as connection:
            self._require_own_schema(connection)
            yield connection

    @contextmanager
    def locked(self, wait_s: float = WRITE_WAIT_S) -> Iterator[Connection]:
        """A write transaction whatever the schema is.

        READ COMMITTED, not stricter: each statement then sees what was committed before it, while
        a stricter level would keep the view of the moment before the lock was waited for.
        """
        with self._translated(), self._engine.connect() as bare:
            connection = bare.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                connection.execute(_SETTINGS, {"wait": str(max(1, int(wait_s * 1000)))})
                connection.execute(_LOCK, {"key": WRITER_LOCK})
                yield connection

    def problems(self, connection: Connection) -> Iterator[str]:  # noqa: ARG002
        """None that it could tell of: PostgreSQL holds foreign keys always, and checks its pages
        as they are read."""
        yield from ()

    def _require_own_schema(self, connection: Connection) -> None:
        """Another host may have upgraded the registry since it was opened here."""
        if connection.scalars(select(ALEMBIC_VERSION.c.version_num)).all() == [SCHEMA_HEAD]:
            return
        state = schema_state(connection)
        raise check_schema(state, self.name) or too_new(state, self.name)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise translate(error, self.name) from error


def open_postgresql(url: URL, *, create: bool) -> PostgresqlDatabase:
    """An existing registry, or with `create` also a new one in an empty database.

    Raises RegistryMissing, RegistryCorrupt, RegistryTooNew, RegistryTooOld, RegistryReadOnly, and
    RegistryError where the server cannot be reached.
    """
    database = PostgresqlDatabase(url)
    state = database.schema_state()
    if state.revision is None and not create:
        raise _missing(database.name, "the database is empty")
    if state.revision is None:
        upgrade_postgresql(url)
    else:
        database.refusal = check_schema(state, database.name)
    return database


def upgrade_postgresql(url: URL) -> tuple[str | None, str]:
    """The schema revision before, None where the database was empty, and now.

    Any number of processes may call it at once: the first does the work in one transaction, under
    the writers' lock; the others wait and find nothing left to do.
    """
    from registry.upgrade import migrate

    database = PostgresqlDatabase(url)
    with database.locked() as connection:
        return migrate(connection, database.name), SCHEMA_HEAD


def _engine(url: URL, name: str) -> Engine:
    """No connection is kept: a process that waits for hours holds none open. No statement is
    prepared on the server: a pooler may give the next transaction to another one."""
    waits = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    arguments = {"prepare_threshold": None, **waits}
    try:
        return create_engine(url, poolclass=NullPool, connect_args=arguments)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"registry {name} needs psycopg, which is not installed",
            hint="pip install 'diffusion-tuner[postgresql]'",
        ) from error


def translate(error: DBAPIError, name: str) -> RegistryError:
    """The one place where PostgreSQL's errors become ours, by SQLSTATE: its five digits, or the
    two of its class."""
    detail = str(error.orig).strip().partition("\n")[0]
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return _without_state(error, name, detail)
    return (_BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or _other)(name, detail)


def _without_state(error: DBAPIError, name: str, detail: str) -> RegistryError:
    """libpq gives no SQLSTATE before the login, and psycopg none for what it refuses to send."""
    if _NO_DATABASE.search(detail):
        return _missing(name, detail)
    return (_unreachable if isinstance(error, OperationalError) else _other)(name, detail)


def _missing(name: str, detail: str) -> RegistryMissing:
    return RegistryMissing(
        f"there is no registry at {name} ({detail})",
        hint="Make the database with createdb, then run `tuner registry upgrade`.",
    )


def _busy(name: str, detail: str) -> RegistryError:
    return RegistryError(
        f"registry {name} is busy: another process is writing to it ({detail})",
        hint="Try again; if it stays busy, pg_stat_activity names who holds the advisory lock.",
    )


def _read_only(name: str, detail: str) -> RegistryReadOnly:
    return RegistryReadOnly(
        f"registry {name} cannot be written ({detail})",
        hint="Use a role that may write there, on the primary server.",
    )


def _full(name: str, detail: str) -> RegistryFull:
    return RegistryFull(
        f"registry {name} cannot grow ({detail}); nothing was half-written",
        hint="Free disk space on the server, then run the same command again.",
    )


def _corrupt(name: str, detail: str) -> RegistryCorrupt:
    return RegistryCorrupt(
        f"registry {name} is damaged ({detail})", hint="Restore the database from a backup."
    )


def _unreachable(name: str, detail: str) -> RegistryError:
    return RegistryError(
        f"registry {name} cannot be reached ({detail})",
        hint="Check the address, the role, and that the server runs.",
    )


def _other(name: str, detail: str) -> RegistryError:
    return RegistryError(f"registry {name} cannot be used ({detail})")


_BY_STATE: dict[str, Callable[[str, str], RegistryError]] = {
    "25006": _read_only,  # read_only_sql_transaction: a standby
    "3D000": _missing,  # invalid_catalog_name
    "42501": _read_only,  # insufficient_privilege
    "53100": _full,  # disk_full
    "55P03": _busy,  # lock_not_available
    "XX001": _corrupt,  # data_corrupted
    "XX002": _corrupt,  # index_corrupted
}
_BY_CLASS: dict[str, Callable[[str, str], RegistryError]] = {
    "08": _unreachable,  # connection exceptions
    "28": _unreachable,  # invalid authorization
    "57": _unreachable,  # operator intervention: the server is going down
}
