"""What a registry needs of its database: transactions, and the errors they end with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager

from sqlalchemy import Connection

from registry.errors import RegistryError
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
