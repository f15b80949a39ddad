"""A registry in an SQLite file: transactions, the check of its schema, and its creation.

A write transaction begins with `BEGIN IMMEDIATE`, so nothing it reads can change before it writes.
A read transaction is deferred and takes no write lock. Every connection is closed after its
transaction: a process that waits for hours holds nothing open.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from registry import sqlite
from registry.database import WRITE_WAIT_S, Database
from registry.errors import (
    RegistryError,
    RegistryMissing,
    RegistryReadOnly,
)
from registry.revision import check_schema
from registry.schema import SCHEMA_HEAD
from registry.sqlite_changes import Changes

_BEGIN = "registry_begin"


class SqliteDatabase(Database):
    """One SQLite file."""

    def __init__(self, path: Path, driver: sqlite.Driver, mode: sqlite.OpenMode) -> None:
        super().__init__(str(path))
        self.path = path
        self._driver = driver
        self._engine = _engine(path, driver, mode)
        self._changes = Changes(path, driver)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._translated(), self._reader() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, wait_s: float = WRITE_WAIT_S) -> Iterator[Connection]:
        if self.refusal is not None:
            raise self.refusal
        with self._translated(), self._engine.connect() as bare:
            sqlite.set_busy_timeout(bare.connection.dbapi_connection, wait_s)
            self._leave_unsafe_wal(bare)
            connection = bare.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
            with connection.begin():
                yield connection

    def version(self) -> Hashable | None:
        """Not known to an SQLite that has to leave WAL mode first: what watches would be in its
        way."""
        if not self._driver.wal_is_safe:
            return None
        try:
            return self._changes.version()
        except (OSError, self._driver.module.Error):  # reading says what is wrong
            return None

    def problems(self, connection: Connection) -> Iterator[str]:
        for row in connection.exec_driver_sql("PRAGMA integrity_check"):
            if row[0] != "ok":
                yield f"database file: {row[0]}"
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            yield f"table {row[0]}: row {row[1]} names a row of {row[2]} that is not there"

    def prefer_wal(self) -> None:
        """Readers and a writer side by side, where this SQLite is safe for it.

        Called by the one process that created the tables. Another that opened the file in the
        same moment may hold it: then the rollback journal stays, which is as safe and only slower.
        """
        if not self._driver.wal_is_safe:
            return
        with self._translated(), self._engine.connect() as connection:
            try:
                sqlite.set_journal_mode(connection.connection.dbapi_connection, "WAL")
            except self._driver.module.OperationalError:
                return

    def _leave_unsafe_wal(self, connection: Connection) -> None:
        """A newer SQLite left the file in WAL mode, and this one would corrupt it. Once left, the
        file stays with the rollback journal: nobody turns WAL on again under this process."""
        driver_connection = connection.connection.dbapi_connection
        if self._driver.wal_is_safe or sqlite.journal_mode(driver_connection) != "wal":
            return
        try:
            sqlite.set_journal_mode(driver_connection, "DELETE")
        except self._driver.module.OperationalError as error:
            raise RegistryError(
                f"registry {self.path} is in use in WAL mode, which is not safe with SQLite "
                f"{'.'.join(map(str, self._driver.version))} ({error})",
                hint="Install pysqlite3 here, or try again when nobody else uses it.",
            ) from error

    def _reader(self) -> Connection:
        """In WAL mode a reader makes a lock file. Where it cannot (a read-only folder, a full disk)
        and no log lies beside the database, nobody is writing: it is read as it lies."""
        try:
            return self._engine.connect()
        except DBAPIError as error:
            if not sqlite.refuses_locks(error) or _has_log(self.path):
                raise
            return _engine(self.path, self._driver, "immutable").connect()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, self._driver.module.Error) as error:
            raise sqlite.translate(error, self.path) from error
        except UnicodeDecodeError as error:  # the driver reads SQLite's own message about damage
            raise sqlite.corrupt(self.path, str(error)) from error


def _engine(path: Path, driver: sqlite.Driver, mode: sqlite.OpenMode) -> Engine:
    engine = create_engine(
        "sqlite://",
        module=driver.module,
        creator=sqlite.connector(driver, path, mode),
        poolclass=NullPool,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def open_database(path: Path, *, create: bool) -> SqliteDatabase:
    """An existing registry, or with `create` also a new one.

    Raises RegistryMissing, RegistryCorrupt, RegistryTooNew, RegistryTooOld, RegistryReadOnly.
    """
    if not path.exists():
        return _create(path, create)
    database = SqliteDatabase(path, sqlite.best_driver(), "rw")
    state = database.schema_state()
    if state.revision is None:
        return _create(path, create)
    database.refusal = check_schema(state, database.name)
    return database


def _has_log(path: Path) -> bool:
    return any(
        log.exists() and log.stat().st_size > 0
        for log in (Path(f"{path}-wal"), Path(f"{path}-journal"))
    )


def upgrade_database(path: Path) -> tuple[str | None, str]:
    """The schema revision before, None where the file is new or empty, and now.

    Any number of processes may call it at once: the first does the work in one transaction, the
    others wait and find nothing left to do.

    Raises RegistryTooNew without changing a byte, RegistryCorrupt, RegistryReadOnly, RegistryFull.
    """
    from registry.upgrade import migrate

    make_private_folder(path.parent)
    was_missing = not path.exists()
    database = SqliteDatabase(path, sqlite.best_driver(), "rwc")
    if was_missing:
        _make_private(database)
    with database.write() as connection:
        before = migrate(connection, database.name)
    if before is None:
        database.prefer_wal()
    return before, SCHEMA_HEAD


def _create(path: Path, create: bool) -> SqliteDatabase:
    if not create:
        raise RegistryMissing(
            f"there is no registry at {path}", hint="`tuner run` makes one, or pass --registry."
        )
    upgrade_database(path)
    return SqliteDatabase(path, sqlite.best_driver(), "rw")


def _make_private(database: SqliteDatabase) -> None:
    """By name: opening and closing the file here would drop the locks SQLite holds on it."""
    with database.read():
        database.path.chmod(0o600)


def make_private_folder(folder: Path) -> None:
    """Make it and its parents. Raises RegistryReadOnly."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryReadOnly(
            f"the folder {folder} cannot be made ({error.strerror})",
            hint="Give write permission on its parent, or choose another with --registry.",
        ) from error
