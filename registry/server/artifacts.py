"""Artifacts over HTTP: files by digest, in parts where asked, and taken in as they come."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from registry.artifacts import Incoming, Staged
from registry.digest import short
from registry.errors import InvalidInput, RecordNotFound
from registry.store import Registry
from registry.wire import API, ArtifactKept, Digest

PIECE_BYTES = 1 << 20
BYTES = "application/octet-stream"
BODY = {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}, "required": True}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {BYTES: {}}, "description": "The bytes, or the part that Range asks for."},
    304: {"description": "They are those that If-None-Match names."},
}


class Artifacts:
    """`most_bytes` is the size of the largest artifact that is taken in."""

    def __init__(self, registry: Registry, most_bytes: int) -> None:
        self._registry, self._most_bytes = registry, most_bytes

    def router(self) -> APIRouter:
        routes = APIRouter(prefix=f"{API}/artifacts", tags=["artifacts"])
        one = "/{sha256}"
        routes.get(one, response_class=FileResponse, responses=ANSWERS)(self.read)
        routes.head(one, response_class=FileResponse, include_in_schema=False)(self.read)
        body = {"requestBody": BODY}
        routes.put(one, status_code=201, max_body_size=self._most_bytes, openapi_extra=body)(
            self.keep
        )
        return routes

    def read(self, sha256: Digest, request: Request) -> Response:
        """The bytes of this digest. Whoever takes them proves them by it."""
        tag = f'"{sha256}"'
        headers = {"etag": tag, "cache-control": "private, max-age=31536000, immutable"}
        path, size_bytes = self._registry.find_artifact(sha256)
        found = _stat(path, size_bytes)
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, media_type=BYTES, headers=headers, stat_result=found)

    async def keep(self, sha256: Digest, request: Request) -> ArtifactKept:
        """Keep the bytes of this digest. What no record names within a day is removed."""
        with await to_thread.run_sync(self._registry.incoming_artifact) as incoming:
            await _receive(incoming, request)
            staged = await to_thread.run_sync(incoming.staged)
        await to_thread.run_sync(self._place, staged, sha256)
        return ArtifactKept(sha256=sha256, size_bytes=staged.size_bytes)

    def _place(self, staged: Staged, wanted: str) -> None:
        if staged.sha256 != wanted:
            with staged:  # removes them
                raise InvalidInput(f"these are the bytes of {staged.sha256}, not of {wanted}")
        self._registry.keep_artifact(staged)


async def _receive(incoming: Incoming, request: Request) -> None:
    """Raises InvalidInput where the sender went away."""
    pieces = bytearray()
    try:
        async for piece in request.stream():
            pieces += piece
            if len(pieces) >= PIECE_BYTES:
                await to_thread.run_sync(incoming.write, bytes(pieces))
                pieces.clear()
    except ClientDisconnect as error:
        raise InvalidInput("the artifact's bytes ended before their end") from error
    await to_thread.run_sync(incoming.write, bytes(pieces))


def _stat(path: Path, size_bytes: int) -> os.stat_result:
    """A file that is not there, or not whole, is a miss: the plan is compiled anew."""
    try:
        found = path.stat()
    except OSError as error:
        raise RecordNotFound(f"the bytes of artifact {short(path.name)} are lost") from error
    if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
        raise RecordNotFound(f"the bytes of artifact {short(path.name)} are damaged")
    return found
