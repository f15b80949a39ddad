"""Runs the service until it is told to stop: uvicorn with deadlines of our own."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import APIRouter
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from registry.errors import InvalidInput
from registry.server.app import Options, Parts, create_app
from registry.server.audit import Audit
from registry.server.listening import Address, Tls, check, listening
from registry.server.memory import Fetches
from registry.server.tokens import Tokens
from registry.server.upkeep import collecting
from registry.signing import SigningKeys
from registry.store import Registry

logger = logging.getLogger(__name__)

HEAD_S = 15.0
"""How long a request's head may take, from the connection or the request before it."""
MOST_CONNECTIONS = 768
"""Under the usual limit of 1,024 open files. Who comes after that takes the place of whoever has
waited longest to say something."""
MOST_FILES = 1 << 16
"""Open at once, where the machine allows it: a TLS handshake under way is no connection yet."""
ACCEPTED_AT_ONCE = 64
END_S = 10
"""How long answers under way are waited for at the end."""


class PatientProtocol(H11Protocol):
    """uvicorn waits for ever for a request's head; this ends a connection that does not send it."""

    head_s = HEAD_S
    most_connections = MOST_CONNECTIONS
    deadline: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most_connections:
            self._make_room()

    @override
    def data_received(self, data: bytes) -> None:
        """What comes of a body after its answer is on the time of the next head."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._wait()
        else:
            self._wait_no_more()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.head_s, self.transport.close)

    def _wait_no_more(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _make_room(self) -> None:
        """The newest connection goes itself where all others are at work."""
        waiting = {
            one.deadline.when(): one
            for one in self.connections
            if isinstance(one, PatientProtocol)
            and one.deadline is not None
            and not one.transport.is_closing()
        }
        if waiting:
            waiting[min(waiting)].transport.abort()


class PatientLoop(asyncio.SelectorEventLoop):
    """Ends TLS handshakes that stand still, for which uvicorn names no time, and says once that
    there are no more files to open: asyncio says so for each connection that it cannot take."""

    _told_of_files = False

    @override
    async def create_server(self, *given: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl"):
            options |= {"ssl_handshake_timeout": HEAD_S, "ssl_shutdown_timeout": HEAD_S}
        return await super().create_server(*given, **options)

    @override
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            super().call_exception_handler(context)
        elif not self._told_of_files:
            self._told_of_files = True
            logger.error("connections wait: %s", error.strerror)


@dataclass(frozen=True)
class Service:
    """What is served and how. `config_dir` holds the tokens and the trusted keys, `data_dir` the
    audit; `more` are routes of whoever serves it."""

    registry: Registry
    fetches: Fetches
    config_dir: Path
    data_dir: Path
    version: str
    address: Address = field(default_factory=Address)
    tls: Tls | None = None
    options: Options = field(default_factory=Options)
    more: Sequence[APIRouter] = ()

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.config_dir)


def serve(service: Service, tell: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM; `tell` is given the URL once it answers. Raises InvalidInput where
    it must not or cannot listen, and for a registry that is served itself."""
    if service.registry.is_served:
        raise InvalidInput(f"registry {service.registry.name} is served already, elsewhere")
    check(service.address, service.tls, service.tokens)
    parts = Parts(
        registry=service.registry,
        tokens=service.tokens,
        keys=SigningKeys(service.config_dir),
        audit=Audit(service.data_dir),
        fetches=service.fetches,
    )
    options = replace(service.options, policy=service.address.policy)
    app = create_app(parts, options, version=service.version, more=service.more)
    _log_to_stderr()
    _allow_files()
    with listening(service.address) as (listener, where):
        scheme = "http" if service.tls is None else "https"
        tell(where if where.startswith("unix:") else f"{scheme}://{where}")
        running = server(app, service.tls)
        try:
            with _stopping_politely(running), collecting(service.registry):
                running.run(sockets=[listener])
        finally:
            parts.audit.close()
            parts.fetches.write()


def server(app: Any, tls: Tls | None = None) -> uvicorn.Server:
    """uvicorn, which believes no proxy's headers and names neither itself nor its version."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        loop="registry.server.running:PatientLoop",
        backlog=ACCEPTED_AT_ONCE,
        limit_concurrency=MOST_CONNECTIONS + 1,
        timeout_graceful_shutdown=END_S,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    return uvicorn.Server(config)


@contextmanager
def _stopping_politely(running: uvicorn.Server) -> Iterator[None]:
    """uvicorn raises the signal that ended it once more, under the handlers it met: these. Being
    told to stop is no failure, and what follows the end is still to be done."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        running.should_exit = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_files() -> None:
    """As many as this user may open. A limit that stays as it was is no reason not to serve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
