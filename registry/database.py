"""What a registry needs of its database: transactions, and the errors they end with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager

from sqlalchemy import Connection
from typing_extensions import override

from registry.errors import RegistryError, RegistryReadOnly
from registry.revision import SchemaState, schema_state

WRITE_WAIT_S = 30.0
"""How long a writer waits for the others."""


class Database(ABC):
    """`name` is what messages call it, without a password. `refusal` is the error every write
    meets, None where writes are welcome."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refusal: RegistryError | None = None

    @abstractmethod
    def read(self) -> AbstractContextManager[Connection]:
        """One consistent view. Raises the errors of `registry.errors.RegistryError`."""

    @abstractmethod
    def write(self, *, wait_s: float = WRITE_WAIT_S) -> AbstractContextManager[Connection]:
        """All or nothing, with no other writer beside it, so that nothing it reads changes before
        it writes; waits at most `wait_s` for others.

        Raises RegistryReadOnly, RegistryFull, RegistryTooNew, or RegistryError when it stays busy.
        """

    def version(self) -> Hashable | None:
        """Equal to the one before only where nothing was written in between; None: not known."""
        return None

    @abstractmethod
    def problems(self, connection: Connection) -> Iterator[str]:
        """What the database finds wrong with itself, one line each."""

    def schema_state(self) -> SchemaState:
        """Raises RegistryCorrupt for a database that is not a registry's."""
        with self.read() as connection:
            return schema_state(connection)


class LateDatabase(Database):
    """Opened where it is first read, and again for as long as that fails; never written."""

    def __init__(self, name: str, open_it: Callable[[], Database]) -> None:
        super().__init__(name)
        self._open_it = open_it
        self._opened: Database | None = None

    @override
    def read(self) -> AbstractContextManager[Connection]:
        """Raises what opening it does, too."""
        return self._now_open().read()

    @override
    def write(self, *, wait_s: float = WRITE_WAIT_S) -> AbstractContextManager[Connection]:
        raise RegistryReadOnly(f"registry {self.name} is a base: it is only read")

    @override
    def version(self) -> Hashable | None:
        try:
            return self._now_open().version()
        except RegistryError:
            return None

    @override
    def problems(self, connection: Connection) -> Iterator[str]:
        return self._now_open().problems(connection)

    def _now_open(self) -> Database:
        if self._opened is None:
            self._opened = self._open_it()
        return self._opened
