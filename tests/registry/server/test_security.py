"""What strangers may try: every answer to it is a refusal, and nobody else waits for it."""

from __future__ import annotations

import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.server.app import Options
from registry.server.running import PatientProtocol
from registry.server.tokens import Role, Tokens
from tests.registry import samples
from tests.registry.samples import NOW
from tests.registry.server.serving import Served, process, served

MB = 10**6
SLOW_CONNECTIONS = 256
LIMIT_BYTES = 3 * MB
DIGEST = "a" * 64

TRICKS = [
    "..", "../", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e/%2e%2e/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%252f..%252fetc%252fpasswd", "%252e%252e%252fetc",
    "..\\..\\etc\\passwd", "..%5c..%5cetc%5cpasswd", "%c0%ae%c0%ae/etc", "%c0%ae%c0%ae%c0%afetc",
    "%e0%80%ae%e0%80%ae/etc", "..%c0%afetc", "%uff0e%uff0e/etc", "....//....//etc/passwd",
    "..;/..;/etc", "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd",
    "~root", "%00", "..%00/", f"{DIGEST}%00", f"{DIGEST}%00.txt", f"{DIGEST}/..", f"{DIGEST}/../..",
    f"{DIGEST}.txt", f"{DIGEST}%0a", f"{DIGEST}%20", f"%20{DIGEST}", f"{DIGEST[:-1]}A",
    f"{DIGEST}a", f"{DIGEST[:-1]}%61%2f", "%ff%fe", "%", "%zz", "*", "'%20OR%201=1--", "{sha256}",
    "a" * 9000,
]  # fmt: skip
PLACES = ["artifacts/", "records/", "studies/", "plans/", "../artifacts/", "inventories?key="]


@pytest.fixture(scope="module")
def guarded(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With small limits, and one record in it."""
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(empty, folder / "registry.sqlite3")
    options = Options(artifact_bytes=LIMIT_BYTES, body_pause_s=0.2)
    with served(folder / "registry.sqlite3", folder, options) as found:
        found.registry.publish([samples.record()], now=NOW)
        yield found


def connection(service: Served) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def asked(service: Served, request: bytes) -> int:
    """The status of the answer to these very bytes."""
    with connection(service) as stream:
        stream.sendall(request)
        return status_of(stream)


def status_of(stream: socket.socket) -> int:
    with stream.makefile("rb") as reader:
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", reader.readline())
    assert found is not None
    return int(found[1])


def head(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# Paths


@pytest.mark.parametrize("place", PLACES)
def test_no_trick_with_a_path_leads_anywhere(guarded: Served, place: str) -> None:
    wrong = {}
    for trick in TRICKS:
        status = asked(guarded, head("GET", f"/v1/{place}{trick}"))
        if not 400 <= status < 500:
            wrong[trick] = status
    assert wrong == {}


@pytest.mark.parametrize("place", ["artifacts/", "records/"])
def test_no_trick_with_a_path_writes(guarded: Served, place: str) -> None:
    token = f"Authorization: Bearer {guarded.secrets['admin']}"
    before = sorted(guarded.folder.rglob("*"))
    for trick in TRICKS:
        request = head("PUT", f"/v1/{place}{trick}", token, "Content-Length: 3") + b"abc"
        assert 400 <= asked(guarded, request) < 500, trick
    assert sorted(guarded.folder.rglob("*")) == before


# Tokens


def writes(service: Served) -> list[tuple[str, str, Role]]:
    """Every route that changes something, and the role that it needs, as its page says."""
    roles: dict[tuple[str, str], Role] = {
        ("post", "/v1/records"): "publish",
        ("put", "/v1/artifacts/{sha256}"): "publish",
        ("put", "/v1/inventories"): "publish",
    }
    with service.client() as client:
        paths = client.get("/v1/openapi.json").json()["paths"]
    return [
        (method, re.sub(r"\{\w+\}", DIGEST, path), roles.get((method, path), "admin"))
        for path, methods in paths.items()
        for method in methods
        if method != "get" and not path.startswith("/v1/fetches/")
    ]


def test_nothing_is_changed_without_the_right_token(guarded: Served) -> None:
    revoked = guarded.tokens.create("revoked", "admin", NOW)
    guarded.tokens.revoke("revoked")
    found = writes(guarded)
    assert len(found) == 7
    for method, path, role in found:
        with guarded.client() as client:
            statuses = {
                name: client.request(method, path, headers=headers).status_code
                for name, headers in shown(guarded, revoked).items()
            }
        allowed = {"admin"} | ({"publish"} if role == "publish" else set())
        for name in ("read", "publish", "admin"):
            assert (statuses.pop(name) != 403) == (name in allowed), (method, path, name)
        assert set(statuses.values()) == {401}, (method, path, statuses)


def shown(service: Served, revoked: str) -> dict[str, dict[str, str]]:
    def bearer(secret: str) -> dict[str, str]:
        return {"authorization": f"Bearer {secret}"}

    return {
        "missing": {},
        "empty": {"authorization": "Bearer"},
        "wrong": bearer("tuner_wrong"),
        "cut": bearer(service.secrets["admin"][:-1]),
        "its digest": bearer(service.tokens.all()[2].sha256),
        "another scheme": {"authorization": f"Basic {service.secrets['admin']}"},
        "revoked": bearer(revoked),
        **{role: bearer(secret) for role, secret in service.secrets.items()},
    }


def test_a_refused_token_reads_nothing_either(guarded: Served) -> None:
    with guarded.client(authorization="Bearer tuner_wrong") as client:
        assert client.get("/v1/candidates").status_code == 401


def test_a_list_of_tokens_that_cannot_be_read_lets_nobody_write(
    empty: Path, tmp_path: Path
) -> None:
    shutil.copy(empty, tmp_path / "registry.sqlite3")
    with served(tmp_path / "registry.sqlite3", tmp_path) as found, found.client("admin") as client:
        found.tokens.path.write_text("{")
        answer = client.post(f"/v1/records/{DIGEST}/rollback")
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text


# Browsers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]:8319"}, 200),
        ({"origin": "https://evil.example"}, 200),
    ],
)
def test_a_page_cannot_read_under_another_name(
    guarded: Served, headers: dict[str, str], status: int
) -> None:
    with guarded.client() as client:
        answer = client.get("/v1/health", headers=headers)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
def test_a_page_changes_nothing(guarded: Served, origin: str) -> None:
    with guarded.client("admin", origin=origin) as client:
        for method, path, _ in writes(guarded):
            assert client.request(method, path).status_code == 403
        assert client.options("/v1/records").status_code == 403


def test_two_hosts_are_none(guarded: Served) -> None:
    assert 400 <= asked(guarded, head("GET", "/v1/health", "Host: localhost")) < 500
    assert asked(guarded, b"GET /v1/health HTTP/1.0\r\n\r\n") == 421


# Bodies


@pytest.mark.parametrize("route", ["POST /v1/records", f"PUT /v1/artifacts/{DIGEST}"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "endless"])
def test_a_body_that_is_too_large_is_cut_off(guarded: Served, route: str, declared: bool) -> None:
    token = f"Authorization: Bearer {guarded.secrets['publish']}"
    size = "Content-Length: 99999999999" if declared else "Transfer-Encoding: chunked"
    request = head(*route.split(), token, size, "Content-Type: application/json")
    with connection(guarded) as stream:
        stream.sendall(request)
        send_until_closed(stream, b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        assert status_of(stream) == 413
    kept = guarded.registry.path.with_name("registry.sqlite3.artifacts")
    assert [path for path in kept.rglob("*") if path.is_file()] == []


def send_until_closed(stream: socket.socket, piece: bytes, most: int = 64) -> None:
    try:
        for _ in range(most):
            stream.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        return


def test_a_body_that_stands_still_is_not_waited_for(guarded: Served) -> None:
    token = f"Authorization: Bearer {guarded.secrets['publish']}"
    for route in ("POST /v1/records", f"PUT /v1/artifacts/{DIGEST}"):
        request = head(*route.split(), token, "Content-Length: 10") + b"abc"
        assert asked(guarded, request) == 408


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"records": ' + b"[" * 100_000,
        b'{"records": [' + b"9" * 10_000 + b"]}",
        b'{"records": [NaN]}',
        b'{"records": ["\\ud800"]}',
        b"\xff\xfe",
        b"",
    ],
    ids=["deep", "deep inside", "long number", "nan", "half a character", "no text", "nothing"],
)
def test_json_that_is_made_to_hurt_is_refused(guarded: Served, body: bytes) -> None:
    with guarded.client("publish", **{"content-type": "application/json"}) as client:
        for method, path in (("POST", "/v1/records"), ("PUT", "/v1/inventories?key=a")):
            assert 400 <= client.request(method, path, content=body).status_code < 500


def test_memory_does_not_grow_with_what_is_sent(tmp_path: Path) -> None:
    secret = Tokens(tmp_path / "home" / "config").create("alice", "publish", NOW)
    token = {"authorization": f"Bearer {secret}"}

    def endless(most: int) -> Iterator[bytes]:
        yield from (b"\0" * MB for _ in range(most))

    with process(tmp_path) as (client, pid):
        for _ in range(2):  # what is loaded once is loaded then
            client.put(f"/v1/artifacts/{DIGEST}", content=endless(2), headers=token)
        before = psutil.Process(pid).memory_info().rss
        answer = client.put(f"/v1/artifacts/{DIGEST}", content=endless(64), headers=token)
        assert answer.status_code == 422
        assert psutil.Process(pid).memory_info().rss - before < 24 * MB


# Slow connections


def test_slow_connections_are_nobody_elses_trouble(guarded: Served) -> None:
    """Half a head each, and some half a body; others are answered meanwhile."""
    with ExitStack() as held:
        for number in range(SLOW_CONNECTIONS):
            stream = held.enter_context(connection(guarded))
            body = number % 8 == 0
            lines = (
                head("POST", "/v1/plan", "Content-Length: 10") if body else b"GET / HTTP/1.1\r\n"
            )
            stream.sendall(lines)
        with guarded.client() as client:
            for _ in range(5):
                assert client.get("/v1/candidates").status_code == 200


def test_a_head_that_does_not_come_ends_its_connection(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.1)
    begun: list[Callable[[socket.socket], Any]] = [
        lambda _: None,
        lambda stream: stream.sendall(b"GET /v1/health HT"),
        lambda stream: stream.sendall(head("GET", "/v1/health").replace(b"close", b"keep-alive")),
    ]
    for begin in begun:
        with connection(guarded) as stream:
            begin(stream)
            while stream.recv(65536):
                stream.send(b"G")  # the next head, never ended


def test_a_body_after_its_answer_does_not_hold_a_connection(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.1)
    request = head("GET", "/v1/health", "Content-Length: 100").replace(b"close", b"keep-alive")
    with connection(guarded) as stream:
        stream.sendall(request)
        assert stream.recv(65536).startswith(b"HTTP/1.1 200")
        stream.sendall(b"x")
        while stream.recv(65536):
            pass


def test_who_says_nothing_makes_room(guarded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "most_connections", 4)
    with ExitStack() as held:
        idle = [held.enter_context(connection(guarded)) for _ in range(8)]
        with guarded.client() as client:
            assert client.get("/v1/health").status_code == 200
        assert idle[0].recv(1) == b""
        idle[-1].sendall(head("GET", "/v1/health"))
        assert status_of(idle[-1]) == 200


def test_a_service_opens_as_many_files_as_it_may(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # the service inherits it
    try:
        with process(tmp_path) as (_, pid):
            found, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found > 512
