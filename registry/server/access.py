"""What a request must have before anything of it is read: a known host, no browser's origin where
it would change something, and a token whose role allows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers

from registry.errors import AccessDenied
from registry.server.listening import Policy
from registry.server.problems import problem
from registry.server.tokens import Role, Token, Tokens
from registry.wire import API, Problem

READING = frozenset({"GET", "HEAD"})
HEALTH = f"{API}/health"
ROLES: Mapping[tuple[str, str], Role] = {
    ("POST", f"{API}/plan"): "read",
    ("POST", f"{API}/fetches/"): "read",
    ("POST", f"{API}/records"): "publish",
    ("PUT", f"{API}/artifacts/"): "publish",
    ("PUT", f"{API}/inventories"): "publish",
}
"""What a method needs on a path; one that ends in a slash stands for those under it. Whatever is
not named here and does not only read needs an admin."""


@dataclass(frozen=True)
class Refused:
    problem: Problem
    headers: Mapping[str, str]


class Access:
    def __init__(self, policy: Policy, tokens: Tokens) -> None:
        self._policy, self._tokens = policy, tokens

    def check(self, method: str, path: str, headers: Headers) -> Token | Refused | None:
        """The token that was shown, None where none was and none is needed. Raises InvalidInput
        where the list of tokens cannot be read."""
        if host_name(headers) not in self._policy.hosts:
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, "this host name is not served here")
        if method not in READING and "origin" in headers:
            return _refused(HTTPStatus.FORBIDDEN, "browsers' pages may change nothing here")
        return self._authorized(method, path, headers)

    def _authorized(self, method: str, path: str, headers: Headers) -> Token | Refused | None:
        role = needed(method, path)
        secret = bearer(headers)
        if secret is None:
            if path == HEALTH or (self._policy.open_reading and role == "read"):
                return None
            return _unauthorized("this needs a token: Authorization: Bearer …")
        token = self._tokens.bearer(secret)
        if token is None:
            return _unauthorized("this token is not known here, or was revoked")
        if not token.may(role):
            told = f"token {token.name!r} has the role {token.role!r}; this needs {role!r}"
            return _refused(HTTPStatus.FORBIDDEN, told)
        return token


def needed(method: str, path: str) -> Role:
    if method in READING:
        return "read"
    for (known, place), role in ROLES.items():
        if method == known and (path == place or (place[-1] == "/" and path.startswith(place))):
            return role
    return "admin"


def bearer(headers: Headers) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None


def host_name(headers: Headers) -> str:
    """Without its port and an IPv6 address's brackets; empty where it is not named once."""
    named = headers.getlist("host")
    if len(named) != 1:
        return ""
    host = named[0].lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _unauthorized(detail: str) -> Refused:
    found = _refused(HTTPStatus.UNAUTHORIZED, detail)
    return Refused(found.problem, {**found.headers, "www-authenticate": "Bearer"})


def _refused(status: HTTPStatus, detail: str) -> Refused:
    """Closed, so that whatever the body is, it is not waited for."""
    return Refused(problem(status, detail, AccessDenied(detail)), {"connection": "close"})
