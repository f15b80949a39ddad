"""Errors as the service tells them: application/problem+json, and nothing of the machine in it."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from registry.errors import (
    AccessDenied,
    DeviceError,
    InvalidInput,
    NoPlan,
    RecordNotFound,
    RegistryConflict,
    RegistryFull,
    RegistryReadOnly,
    TrustListUnreadable,
    TunerError,
    UntrustedArtifact,
)
from registry.wire import Problem

logger = logging.getLogger(__name__)

STATUS: dict[type[TunerError], HTTPStatus] = {
    RecordNotFound: HTTPStatus.NOT_FOUND,
    NoPlan: HTTPStatus.NOT_FOUND,
    InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    DeviceError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UntrustedArtifact: HTTPStatus.FORBIDDEN,
    TrustListUnreadable: HTTPStatus.SERVICE_UNAVAILABLE,
    AccessDenied: HTTPStatus.FORBIDDEN,
    RegistryConflict: HTTPStatus.CONFLICT,
    RegistryReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    RegistryFull: HTTPStatus.INSUFFICIENT_STORAGE,
}
"""Of an error and those under it; any other is the service's own trouble."""

UNREAD = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
UNSAID = "the registry cannot do this now; the service's log says why"
MEDIA_TYPE = "application/problem+json"


class ProblemResponse(Response):
    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        body = problem.model_dump_json(exclude_none=True)
        super().__init__(body.encode(), status_code=problem.status, headers=headers)


def problem(status: HTTPStatus, detail: str, error: TunerError | None = None) -> Problem:
    return Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        kind=None if error is None else type(error).__name__,
        hint=None if error is None else error.hint,
    )


def problem_of(error: TunerError) -> Problem:
    """What the caller can mend is said in full. Of the rest the log knows: its message may name
    folders of this machine."""
    status = next(
        (STATUS[kind] for kind in type(error).__mro__ if kind in STATUS),
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return problem(status, error.message, error)
    logger.warning("%s: %s", type(error).__name__, error.message)
    return problem(status, UNSAID, type(error)(UNSAID))


def install(app: FastAPI) -> None:
    """Have every error of the application told so."""

    @app.exception_handler(TunerError)
    def ours(_: Request, error: TunerError) -> Response:
        return ProblemResponse(problem_of(error))

    @app.exception_handler(HTTPException)
    def of_http(_: Request, error: HTTPException) -> Response:
        """The rest of a body that is too large or too slow is not waited for."""
        status = HTTPStatus(error.status_code)
        found = problem(status, str(error.detail), InvalidInput(error.detail))
        closes = {"connection": "close"} if status in UNREAD else {}
        return ProblemResponse(found, {**(error.headers or {}), **closes})

    @app.exception_handler(RequestValidationError)
    def of_values(_: Request, error: RequestValidationError) -> Response:
        """Where and what; never the value itself, which need not be text."""
        told = "; ".join(_told(item) for item in error.errors()[:10])
        return ProblemResponse(problem(HTTPStatus.UNPROCESSABLE_ENTITY, told, InvalidInput(told)))


def _told(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {item['msg']}".encode("utf-8", "replace").decode()
