"""Where the service listens, what it must have for that, and what it asks for there. Checked before
anything is opened. Imports no FastAPI: the commands that need none are there without it."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.errors import InvalidInput
from registry.server.tokens import Tokens

DEFAULT_PORT = 8319
BACKLOG = 512
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Policy:
    """`hosts` are the names the service answers to. `open_reading`: reading needs no token."""

    hosts: frozenset[str] = LOOPBACK_NAMES
    open_reading: bool = True


@dataclass(frozen=True)
class Tls:
    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises InvalidInput unless both can be read and belong together."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"{self.certificate} and {self.key} are no certificate and its key ({error})"
            ) from error


@dataclass(frozen=True)
class Address:
    """A host and port, or a Unix socket. `names` are host names the service answers to beside its
    own address."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    unix_socket: Path | None = None
    names: tuple[str, ...] = ()
    requires_token: bool = False

    @property
    def is_local(self) -> bool:
        return self.unix_socket is not None or is_loopback(self.host)

    @property
    def policy(self) -> Policy:
        """Beyond this machine everything needs a token, reading too."""
        own = {self.host.lower()} - {"0.0.0.0", "::"}  # noqa: S104 (left out)
        hosts = LOOPBACK_NAMES | own | {name.lower() for name in self.names}
        return Policy(frozenset(hosts), open_reading=self.is_local and not self.requires_token)


def is_loopback(host: str) -> bool:
    """Of a name too: one that leads anywhere else does not count."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInput(f"host {host!r} is not an address of this machine ({error})") from error
    return all(ipaddress.ip_address(str(item[4][0])).is_loopback for item in found)


def check(address: Address, tls: Tls | None, tokens: Tokens) -> None:
    """Raises InvalidInput where the service would be open to others without a token and TLS."""
    if tls is not None:
        tls.check()
    if address.is_local:
        return
    where = f"{address.host} can be reached from other machines"
    if tls is None:
        raise InvalidInput(
            f"{where}, and there is no TLS: tokens would pass in the clear",
            hint="Give --tls-certificate and --tls-key, or listen on 127.0.0.1 behind a proxy "
            "that has them, with --require-token.",
        )
    if not tokens.all():
        raise InvalidInput(
            f"{where}, and there is no token: nobody could be let in, or everybody",
            hint="Make one with `tokens create NAME --role read`.",
        )


@contextmanager
def listening(address: Address) -> Iterator[tuple[socket.socket, str]]:
    """The socket and its URL. A Unix socket is its owner's alone. Raises InvalidInput."""
    if address.unix_socket is not None:
        with _unix(address.unix_socket) as listener:
            yield listener, f"unix:{address.unix_socket}"
        return
    with _bound(address) as listener:
        host = f"[{address.host}]" if ":" in address.host else address.host
        yield listener, f"{host}:{listener.getsockname()[1]}"


def _bound(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(
            (address.host, address.port), family=family, backlog=BACKLOG, reuse_port=False
        )
    except OSError as error:
        raise InvalidInput(
            f"{address.host}:{address.port} cannot be listened on ({error.strerror})",
            hint="Choose another with --host and --port.",
        ) from error


@contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    """One that a killed service left behind is replaced; a living one's is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = error.strerror or error  # a path that is too long has no number
        raise InvalidInput(f"the socket {path} cannot be made ({why})") from error
    with listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
