"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.security import HTTPBearer
from typing_extensions import override

from registry.server import problems
from registry.server.access import Access
from registry.server.artifacts import Artifacts
from registry.server.audit import Audit
from registry.server.guard import BODY_PAUSE_S, Guard
from registry.server.listening import Policy
from registry.server.memory import Fetches
from registry.server.problems import MEDIA_TYPE
from registry.server.reading import Reading
from registry.server.tokens import Tokens
from registry.server.writing import Publisher, Writing
from registry.signing import SigningKeys
from registry.store import Registry
from registry.wire import API, Problem

BODY_BYTES = 8 << 20
"""Of a request that is no artifact: a hundred records with their scores."""
ARTIFACT_BYTES = 2 << 30
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem}
    for status in (400, 401, 403, 404, 405, 408, 409, 413, 421, 422, 503, 507)
}


@dataclass(frozen=True)
class Options:
    """`accepts_unsigned`: records without a signature are taken too."""

    policy: Policy = field(default_factory=Policy)
    accepts_unsigned: bool = False
    artifact_bytes: int = ARTIFACT_BYTES
    body_pause_s: float = BODY_PAUSE_S


@dataclass(frozen=True)
class Parts:
    """What the service stands on. `keys` are those whose signatures it accepts."""

    registry: Registry
    tokens: Tokens
    keys: SigningKeys
    audit: Audit
    fetches: Fetches


class Application(FastAPI):
    """Whose description says of which type its errors are."""

    @override
    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        for path in described["paths"].values():
            for operation in path.values():
                for status, answer in operation["responses"].items():
                    content = answer.get("content", {})
                    if int(status) in PROBLEMS and "application/json" in content:
                        content[MEDIA_TYPE] = content.pop("application/json")
        return described


def create_app(
    parts: Parts,
    options: Options,
    *,
    version: str,
    more: Sequence[APIRouter] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:
    """The application; `more` are routes of whoever serves it. Its pages of documentation are left
    out, since they load scripts from elsewhere; `/v1/openapi.json` is there."""
    app = Application(
        title="Tuning registry",
        version=version,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        max_body_size=BODY_BYTES,
        responses=PROBLEMS,
        dependencies=[Security(HTTPBearer(auto_error=False))],
    )
    problems.install(app)
    app.add_middleware(
        Guard,
        access=Access(options.policy, parts.tokens),
        audit=parts.audit,
        now=now,
        body_pause_s=options.body_pause_s,
    )
    publisher = Publisher(parts.registry, parts.keys, accepts_unsigned=options.accepts_unsigned)
    for routes in (
        Reading(parts.registry).router(),
        Artifacts(parts.registry, options.artifact_bytes).router(),
        Writing(parts.registry, publisher, parts.fetches, now).router(),
        *more,
    ):
        app.include_router(routes)
    return app
