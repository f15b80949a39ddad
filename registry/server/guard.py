"""What stands before the application: access, the patience with slow bodies, the audit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import TunerError
from registry.server.access import Access, Refused, needed
from registry.server.audit import Audit, Entry
from registry.server.problems import ProblemResponse, problem_of
from registry.server.tokens import Token

BODY_PAUSE_S = 30.0
"""How long the next part of a body is waited for."""


REFUSED_BYTES, REFUSED_S = 1 << 16, 1.0
"""How much of the body of a refused request is read, and for how long."""

PUBLISHED = "published"
"""Under this name a request's state holds the ids of the records that it put into service, took
out of it or preferred."""
REPLACED = "replaced"
"""And under this one the key of the inventory that it replaced."""


class Guard:
    """ASGI middleware. `now` gives the audit its times."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        audit: Audit,
        now: Callable[[], datetime],
        body_pause_s: float = BODY_PAUSE_S,
    ) -> None:
        self._app, self._access, self._audit, self._now = app, access, audit, now
        self._body_pause_s = body_pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed = self._allowed(scope)
        watched = _Watched(send)
        try:
            if isinstance(allowed, ProblemResponse):
                await _taken_in(scope, receive)
                await allowed(scope, receive, watched)
            else:
                await self._app(scope, self._patient(receive), watched)
        finally:
            self._note(scope, allowed, watched.status)

    def _allowed(self, scope: Scope) -> Token | ProblemResponse | None:
        try:
            found = self._access.check(scope["method"], scope["path"], Headers(scope=scope))
        except TunerError as error:
            return ProblemResponse(problem_of(error), {"connection": "close"})
        if isinstance(found, Refused):
            return ProblemResponse(found.problem, dict(found.headers))
        return found

    def _patient(self, receive: Receive) -> Receive:
        """A body that stands still ends with 408; whoever waits for the end of a request that is
        whole already waits as long as he likes."""
        is_whole = False

        async def received() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._body_pause_s)
            except TimeoutError as error:
                raise HTTPException(408, "the body stood still") from error
            is_whole = not message.get("more_body", False)
            return message

        return received

    def _note(
        self, scope: Scope, allowed: Token | ProblemResponse | None, status: int | None
    ) -> None:
        """What a reader may do is not noted, unless it was refused."""
        role = needed(scope["method"], scope["path"])
        if role == "read" and not isinstance(allowed, ProblemResponse):
            return
        client = scope.get("client")
        self._audit.note(
            Entry(
                at=self._now().isoformat(timespec="milliseconds"),
                who=allowed.name if isinstance(allowed, Token) else None,
                client=client[0] if client else None,
                method=scope["method"],
                target=scope["path"][:200],
                status=status or 0,
                records=scope.get("state", {}).get(PUBLISHED, ()),
                inventory=scope.get("state", {}).get(REPLACED),
            )
        )


async def _taken_in(scope: Scope, receive: Receive) -> None:
    """A little of a refused body: a connection that is closed with bytes unread is reset, and its
    client may lose the answer. Who waits to be told to go on has sent nothing."""
    if "expect" in Headers(scope=scope):
        return
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_S):
            while size < REFUSED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


class _Watched:
    """Remembers the answer's status; None where it was cut off before one was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
