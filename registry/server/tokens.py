"""Who may use the service: tokens by name and role, kept as their SHA-256.

A token is 256 random bits, so that a plain digest of it tells nothing. The list is a file of the
service's own configuration, never in a registry; a change counts from the next request on.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from registry.base import Frozen
from registry.errors import InvalidInput, RegistryError
from registry.private_files import locked, private_file
from registry.rows import sha256_of

TOKEN_FILE = "service-tokens.json"  # noqa: S105 (a file's name)
PREFIX = "tuner_"
"""So that people and scanners of secrets know one when they see it."""

Role = Literal["read", "publish", "admin"]
ROLES: tuple[Role, ...] = ("read", "publish", "admin")


class Token(Frozen):
    """`sha256` is the digest of the secret, which only its bearer has."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: datetime

    def may(self, role: Role) -> bool:
        """Each role may do what those before it may."""
        return ROLES.index(self.role) >= ROLES.index(role)


class TokenList(Frozen):
    format: Literal[1] = 1
    tokens: tuple[Token, ...] = ()


class Tokens:
    """The list in `directory`, which is readable by its owner alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: tuple[tuple[int, int, int], TokenList] | None = None

    @property
    def path(self) -> Path:
        return self._directory / TOKEN_FILE

    def create(self, name: str, role: Role, now: datetime) -> str:
        """The new secret, which is shown once and kept nowhere. Raises InvalidInput for a name that
        is taken or is none."""
        secret = PREFIX + secrets.token_urlsafe(32)
        try:
            token = Token(name=name, role=role, sha256=_digest(secret), created_at=now)
        except ValidationError as error:
            raise InvalidInput(
                f"{name!r} is not a token's name: up to 64 letters, digits, '.', '_' and '-'"
            ) from error
        with locked(self._directory):
            if any(one.name == name for one in self.all()):
                raise InvalidInput(
                    f"there is a token {name!r} already", hint=f"Revoke it first: revoke {name}"
                )
            self._write(TokenList(tokens=(*self.all(), token)))
        return secret

    def revoke(self, name: str) -> Token:
        """Raises InvalidInput where there is none of this name."""
        with locked(self._directory):
            found = [token for token in self.all() if token.name == name]
            if not found:
                raise InvalidInput(f"there is no token {name!r}")
            rest = tuple(token for token in self.all() if token.name != name)
            self._write(TokenList(tokens=rest))
        return found[0]

    def all(self) -> tuple[Token, ...]:
        """In the order they were made. Raises RegistryError where the list cannot be read."""
        try:
            with self.path.open("rb") as reader:
                return self._of(reader.fileno()).tokens
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            raise RegistryError(
                f"the list of tokens {self.path} cannot be read",
                hint="Mend or remove it; until then nobody is let in.",
            ) from error

    def bearer(self, secret: str) -> Token | None:
        """Whose token it is. Takes as long for a wrong one as for any other."""
        wanted, found = _digest(secret), None
        for token in self.all():
            if hmac.compare_digest(token.sha256, wanted):
                found = token
        return found

    def _of(self, descriptor: int) -> TokenList:
        """Read again where the file is another one: every change replaces it."""
        stat = os.fstat(descriptor)
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._read
        if known is None or known[0] != version:
            with open(descriptor, "rb", closefd=False) as reader:
                known = (version, TokenList.model_validate_json(reader.read()))
            self._read = known
        return known[1]

    def _write(self, tokens: TokenList) -> None:
        data = json.dumps(tokens.model_dump(mode="json"), indent=2) + "\n"
        private_file(self._directory, data.encode()).replace(self.path)


def _digest(secret: str) -> str:
    return sha256_of(secret.encode("utf-8", "surrogateescape"))
