"""Everything peculiar to SQLite: which library, how connections are set up, what errors mean."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from registry.database import WRITE_WAIT_S
from registry.errors import (
    RegistryCorrupt,
    RegistryError,
    RegistryFull,
    RegistryReadOnly,
)

OpenMode = Literal["rw", "rwc", "immutable"]

_BUSY, _LOCKED, _READONLY, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 11, 13, 14, 26
_READONLY_ROLLBACK, _READONLY_RECOVERY = 776, 264
# Plain, write, fsync, folder fsync, truncate, shared-memory size: what a full disk, a quota or a
# file-size limit leads to. Failed reads have codes of their own.
_CANNOT_GROW = (10, 778, 1034, 1290, 1546, 4874)
_WAL_FIXED_BRANCHES = {(3, 44): 6, (3, 50): 7, (3, 51): 3}


@dataclass(frozen=True)
class Driver:
    """A DB-API module and the version of the SQLite library inside it."""

    module: ModuleType
    version: tuple[int, int, int]

    @property
    def wal_is_safe(self) -> bool:
        """False where two connections can corrupt a database in WAL mode (the WAL-reset bug)."""
        return wal_is_safe(self.version)


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Fixed in 3.51.3 and later, and on two older branches in 3.50.7 and 3.44.6."""
    fixed_in = _WAL_FIXED_BRANCHES.get(version[:2])
    if fixed_in is not None:
        return version[2] >= fixed_in
    return version[:2] > (3, 51)


def best_driver() -> Driver:
    """`pysqlite3` where it is installed and newer than the SQLite that Python was built with."""
    own = Driver(sqlite3, sqlite3.sqlite_version_info)
    try:
        module = importlib.import_module("pysqlite3.dbapi2")
    except ModuleNotFoundError:
        return own
    other = Driver(module, module.sqlite_version_info)
    return other if other.version > own.version else own


def connector(driver: Driver, path: Path, mode: OpenMode) -> Callable[[], Any]:
    """A function that opens one set-up connection.

    `isolation_level=None` leaves BEGIN to us: the driver's own deferred transactions let two
    processes read, then both write, and lose one update without an error.
    """
    option = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"file:{quote(str(path))}?{option}"

    def connect() -> Any:
        connection = driver.module.connect(
            uri, uri=True, timeout=WRITE_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def _set_up(connection: Any) -> None:
    """The last line touches the file, so what is wrong with it shows before the first query."""
    connection.text_factory = _decode
    for pragma in ("foreign_keys=ON", "synchronous=FULL", "trusted_schema=OFF", "schema_version"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _decode(data: bytes) -> str:
    """Damaged text must fail one row's check, not the whole query."""
    return data.decode(errors="replace")


def set_busy_timeout(connection: Any, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")


def journal_mode(connection: Any) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def set_journal_mode(connection: Any, mode: Literal["WAL", "DELETE"]) -> None:
    """Outside a transaction. Raises the driver's OperationalError while others are connected."""
    connection.execute(f"PRAGMA journal_mode={mode}").fetchone()


def error_code(error: Exception) -> int | None:
    """SQLite's extended result code; None for an error that SQLite did not raise."""
    code = getattr(_drivers_own(error), "sqlite_errorcode", None)
    return code if isinstance(code, int) else None


def _drivers_own(error: Exception) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def refuses_locks(error: Exception) -> bool:
    """What a reader meets where the lock file of WAL mode cannot be made."""
    code = error_code(error)
    return code is not None and (code & 0xFF in (_CANTOPEN, _READONLY) or code in _CANNOT_GROW)


def translate(error: Exception, path: Path) -> RegistryError:
    """The one place where SQLite's errors become ours."""
    detail, code = str(_drivers_own(error)), error_code(error)
    if code is None:
        return _other(path, detail)
    if code in (_READONLY_ROLLBACK, _READONLY_RECOVERY):
        return RegistryReadOnly(
            f"registry {path} holds a transaction that a killed process left unfinished, and it "
            "cannot be undone in a place that is read-only",
            hint="Open it once with write permission, for instance with `tuner history`.",
        )
    if code in _CANNOT_GROW:
        return _full(path, detail)
    return _BY_PRIMARY_CODE.get(code & 0xFF, _other)(path, detail)


def _busy(path: Path, detail: str) -> RegistryError:
    return RegistryError(
        f"registry {path} is busy: another process is writing to it ({detail})",
        hint="Try again; if it stays busy, look for a stopped process that has it open.",
    )


def _read_only(path: Path, detail: str) -> RegistryError:
    return RegistryReadOnly(
        f"registry {path} cannot be opened or written ({detail})",
        hint="Give permission on the file and its folder, or choose another with --registry.",
    )


def corrupt(path: Path, detail: str) -> RegistryError:
    """The file cannot be made sense of."""
    return RegistryCorrupt(
        f"registry {path} is damaged or not a registry ({detail})",
        hint="Restore it from a copy, or move it away and start a new one.",
    )


def _full(path: Path, detail: str) -> RegistryError:
    return RegistryFull(
        f"registry {path} cannot grow ({detail}): the disk is full, over quota or failing; "
        "nothing was half-written",
        hint="Free disk space or raise the quota, then run the same command again.",
    )


def _other(path: Path, detail: str) -> RegistryError:
    return RegistryError(f"registry {path} cannot be used ({detail})")


_BY_PRIMARY_CODE: dict[int, Callable[[Path, str], RegistryError]] = {
    _BUSY: _busy,
    _LOCKED: _busy,
    _READONLY: _read_only,
    _CORRUPT: corrupt,
    _NOTADB: corrupt,
    _FULL: _full,
    _CANTOPEN: _read_only,
}
