"""Whether an SQLite file changed since it was last asked, for those who remember answers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from registry.sqlite import Driver, connector


class Changes:
    """Holds one connection open, on which SQLite counts the commits of all others. A file that was
    put in the place of another is another version too."""

    def __init__(self, path: Path, driver: Driver) -> None:
        self._path, self._connect = path, connector(driver, path, "rw")
        self._lock = threading.Lock()
        self._watched: tuple[tuple[int, int], Any, Callable[[], object]] | None = None
        self._opened = 0

    def version(self) -> Hashable:
        """Equal to the one before only where nothing was committed in between. Raises OSError and
        the driver's errors."""
        with self._lock:
            stat = self._path.stat()
            file = (stat.st_ino, stat.st_ctime_ns)
            if self._watched is None or self._watched[0] != file:
                self._open(file)
            assert self._watched is not None  # noqa: S101 (for the type checker)
            counted = self._watched[1].execute("PRAGMA data_version").fetchone()[0]
            return self._opened, counted

    def _open(self, file: tuple[int, int]) -> None:
        if self._watched is not None:
            self._watched[2]()
        connection = self._connect()
        self._watched = (file, connection, weakref.finalize(self, connection.close))
        self._opened += 1
