"""Asks a served registry: deadlines, retries, errors as they were raised there, and what was
fetched before where nobody answers."""

from __future__ import annotations

import ipaddress
import json
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
from pydantic import ValidationError

from registry.errors import (
    AccessDenied,
    InvalidInput,
    RecordNotFound,
    RegistryCorrupt,
    RegistryError,
    RegistryUnreachable,
    TunerError,
)
from registry.http_cache import AnswerCache, Fetched
from registry.wire import Problem

CONNECT_S, ANSWER_S = 5.0, 30.0
PAUSES_S = (0.2, 0.8)
"""Before each further try."""
PASSING = (502, 503, 504)
OFFLINE_S = 30.0
"""Who did not answer is not asked again for so long; what was fetched before serves meanwhile."""
ANSWER_BYTES = 256 << 20
"""The longest JSON that is read."""
TOKEN_HINT = "Set TUNER_REGISTRY_TOKEN to a token that the service's owner made."  # noqa: S105
WITHHELD_HINT = (
    "TUNER_REGISTRY_TOKEN is set for the services that TUNER_REGISTRY and TUNER_REGISTRY_BASE name "
    "and was not shown to this one."
)

Parameters = Mapping[str, str | int]
logger = logging.getLogger(__name__)


class HttpService:
    """One served registry, at `url`. `monotonic_s`, `pause` and `now` are the clock. `withholds`:
    there is a token, for other services than this."""

    def __init__(
        self,
        url: str,
        token: str | None,
        cache: AnswerCache,
        *,
        withholds: bool = False,
        monotonic_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        _refuse_clear_token(url, token)
        self.url, self._token, self._cache = url, token, cache
        self._withholds = withholds
        self._monotonic_s, self._pause, self._now = monotonic_s, pause, now
        self._failed_at_s: float | None = None
        self.answered_offline: datetime | None = None

    def get(
        self,
        path: str,
        parameters: Parameters | None = None,
        check: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        """The JSON there, if `check` does not raise RegistryCorrupt of it. Raises
        RegistryUnreachable where nobody answers, and RegistryCorrupt where somebody else does, if
        it was not fetched before; and what `send` raises."""
        question = f"{self.url}{path}?{urlencode(sorted((parameters or {}).items()))}"
        known = self._cache.get(question)
        try:
            fetched = self._fetched(question, known)
            content = _content(fetched, check)
        except (RegistryUnreachable, RegistryCorrupt) as error:
            if known is None:
                raise
            logger.warning("%s; answering with what was fetched at %s", error.message, known.at)
            self.answered_offline = min(known.at, self.answered_offline or known.at)
            fetched, content = known, _content(known, check)
        else:
            self.answered_offline = None
            self._keep(question, fetched, known)
        if fetched.status == HTTPStatus.NOT_FOUND:
            raise self._told(fetched.status, fetched.body)
        return content

    def send(self, method: str, path: str, *, once: bool = False, **content: Any) -> Any:
        """The JSON of the answer. `once` is for what is not the same when it is asked twice: it is
        not tried again. Raises the error that the service tells, RegistryUnreachable, and
        AccessDenied for a token that does not do."""
        with self.answer(method, path, once=once, **content) as answer:
            body = self._body(answer)
        return _parsed(body) if body else None

    @contextmanager
    def answer(
        self, method: str, path: str, *, once: bool = False, **content: Any
    ) -> Iterator[httpx2.Response]:
        """A good answer whose body is yet to be read; as `send`."""
        answer = self._answered(method, f"{self.url}{path}", content, once=once)
        try:
            if not answer.is_success:
                raise self._told(answer.status_code, self._body(answer))
            yield answer
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()

    def _keep(self, question: str, fetched: Fetched, known: Fetched | None) -> None:
        if fetched is known:
            self._cache.renew(question)
        else:
            self._cache.put(question, fetched)

    def _fetched(self, question: str, known: Fetched | None) -> Fetched:
        headers = {"if-none-match": known.etag} if known is not None and known.etag else {}
        answer = self._answered("GET", question, {"headers": headers})
        try:
            if answer.status_code == HTTPStatus.NOT_MODIFIED and known is not None:
                return known
            if answer.status_code in PASSING:  # a proxy before a service that is down, most often
                raise self._unreachable(f"status {answer.status_code}")
            fetched = self._taken(answer)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        finally:
            answer.close()
        return fetched

    def _taken(self, answer: httpx2.Response) -> Fetched:
        """An answer to keep: what is there, or that there is nothing."""
        body = self._body(answer)
        if not answer.is_success:
            error = self._told(answer.status_code, body)
            if not isinstance(error, RecordNotFound):
                raise error
        return Fetched(answer.status_code, answer.headers.get("etag"), self._now(), body)

    def _answered(
        self, method: str, url: str, content: dict[str, Any], *, once: bool = False
    ) -> httpx2.Response:
        """An answer with its body unread. Who is silent for `ANSWER_S` is not asked again."""
        if self._failed_at_s is not None and self._monotonic_s() - self._failed_at_s < OFFLINE_S:
            raise RegistryUnreachable(f"registry {self.url} did not answer a moment ago")
        for pause_s in (None,) if once else (*PAUSES_S, None):
            try:
                answer = self._once(method, url, content)
            except httpx2.TransportError as error:
                if pause_s is None or isinstance(error, httpx2.ReadTimeout):
                    raise self._unreachable(error) from error
            else:
                if answer.status_code not in PASSING or pause_s is None:
                    return answer
                answer.close()
            self._pause(pause_s)
        raise AssertionError  # the last pause is None

    def _once(self, method: str, url: str, content: dict[str, Any]) -> httpx2.Response:
        """A file is opened anew for each try."""
        given = dict(content)
        path = given.pop("file", None)
        if path is not None:
            given["content"] = _pieces(path)
        return self._client.send(self._client.build_request(method, url, **given), stream=True)

    def _body(self, answer: httpx2.Response) -> bytes:
        """Raises RegistryError where it does not end, RegistryUnreachable where it takes longer
        than `ANSWER_S` in all."""
        until_s = self._monotonic_s() + ANSWER_S
        body = bytearray()
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > ANSWER_BYTES:
                raise RegistryError(
                    f"the answer of {answer.url} is longer than {ANSWER_BYTES} bytes"
                )
            if self._monotonic_s() > until_s:
                raise self._unreachable(f"an answer took longer than {ANSWER_S:.0f} s")
        return bytes(body)

    def _told(self, status: int, body: bytes) -> TunerError:
        """The error that the service told, as it was raised there."""
        try:
            told = Problem.model_validate_json(body)
        except ValidationError:
            return RegistryError(f"{self.url} answers {status}: there is no registry's service")
        if status == HTTPStatus.UNAUTHORIZED:
            hint = WITHHELD_HINT if self._withholds else TOKEN_HINT
            return AccessDenied(f"registry {self.url}: {told.detail}", hint=hint)
        return told.error or RegistryError(f"registry {self.url} answers {status}: {told.detail}")

    def _unreachable(self, why: Exception | str) -> RegistryUnreachable:
        """A request that breaks the protocol is told by its kind alone: httpx quotes its headers,
        in which the token is."""
        self._failed_at_s = self._monotonic_s()
        quoted = "" if isinstance(why, httpx2.LocalProtocolError) else str(why)
        return RegistryUnreachable(
            f"registry {self.url} does not answer ({quoted or type(why).__name__})",
            hint="Is it served there (`tuner serve`)? What was fetched before serves meanwhile.",
        )

    @cached_property
    def _client(self) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
        client = httpx2.Client(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            trust_env=self.url.startswith("https:"),  # no proxy may read what passes in the clear
            verify=self.url.startswith("https:"),  # reading certificates costs tens of milliseconds
        )
        weakref.finalize(self, client.close)
        return client


def _refuse_clear_token(url: str, token: str | None) -> None:
    parts = urlsplit(url)
    if token is not None and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise InvalidInput(
            f"the token for {url} would pass in the clear",
            hint="Use https://, or unset TUNER_REGISTRY_TOKEN.",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as reader:
        while piece := reader.read(1 << 20):
            yield piece


def _content(fetched: Fetched, check: Callable[[Any], None]) -> Any:
    """None where there was nothing."""
    if fetched.status == HTTPStatus.NOT_FOUND:
        return None
    content = _parsed(fetched.body)
    check(content)
    return content


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RegistryCorrupt("what came from the registry is not JSON") from error
