"""A registry over HTTP passes the part of the suite that it can; and what is peculiar to it: what
was fetched before, and services that fail or lie."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typing_extensions import override

from registry import http_cache, http_registry
from registry.client import open_registry, upgrade_registry
from registry.errors import (
    AccessDenied,
    InvalidInput,
    RecordNotFound,
    RegistryCorrupt,
    RegistryError,
    RegistryReadOnly,
    RegistryTooNew,
    RegistryUnreachable,
    UntrustedArtifact,
)
from registry.http_cache import AnswerCache, Fetched, trim
from registry.http_client import OFFLINE_S, HttpService
from registry.http_registry import HttpRegistry
from registry.leases import Lease
from registry.location import Opening, locate
from registry.record import ArtifactRef, TuningRecord
from registry.rows import sha256_of
from registry.server.app import Options
from registry.server.listening import Policy
from registry.signing import Signer, SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd
from tests.registry import samples
from tests.registry.conformance import RecordConformance, begin
from tests.registry.samples import NOW
from tests.registry.server.serving import Served, served


class Publishing(HttpRegistry):
    """The service's clock goes by what it is told, and it trusts whoever publishes."""

    service: Served

    @override
    def publish(
        self,
        new_records: Sequence[TuningRecord],
        *,
        now: datetime,
        keys: Signer | None = None,
        end: StudyEnd | None = None,
        lease: Lease | None = None,
        bodies: Sequence[bytes] | None = None,
    ) -> tuple[str, ...]:
        self.service.now = now
        if isinstance(keys, SigningKeys):
            self.service.keys.trust("publisher", keys.public_key.public_key)
        return super().publish(new_records, now=now, keys=keys, end=end, lease=lease, bodies=bodies)


@pytest.fixture(scope="module")
def running(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(empty, folder / "registry.sqlite3")
    database = folder / "registry.sqlite3"
    with served(database, folder, Options(accepts_unsigned=True)) as found:
        yield found


@pytest.fixture
def service(running: Served, empty: Path) -> Served:
    """Over an empty registry: no connection outlives a transaction."""
    database = running.registry.path
    for path in database.parent.glob(f"{database.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(empty, database)
    return running


def opened(service: Served, folder: Path, role: Any = "admin") -> Publishing:
    url = service.url
    cache = AnswerCache(folder)
    asked = HttpService(url, service.secrets[role], cache, pause=lambda _: None)
    found = Publishing(asked, folder)
    found.service = service
    return found


@pytest.fixture
def registry(service: Served, tmp_path: Path) -> Registry:
    return opened(service, tmp_path / "cache")


class TestHttpRegistry(RecordConformance):
    pass


# Opening


def test_it_is_opened_by_its_url(service: Served, tmp_path: Path) -> None:
    service.registry.publish([samples.record()], now=NOW)
    options = Opening(tmp_path, service.secrets["read"])
    for url in (service.url, f"{service.url}/"):
        registry = open_registry(url, create=False, opening=options)
        assert registry.name == service.url
        assert len(registry.candidates(model_name="tiny-flux")) == 1


@pytest.mark.parametrize(
    "url", ["http://user:secret@host", "https://token@host", "http://", "http://host?token=secret"]
)
def test_a_url_holds_no_token(url: str) -> None:
    with pytest.raises(InvalidInput, match="over HTTP") as raised:
        locate(url)
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    "url",
    ["http://a..b", "http://[::1", "http://host:port", "http://host:99999", "http://host:0",
     "https://host/path#part"],
)  # fmt: skip
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(InvalidInput, match="over HTTP"):
        locate(url)


def test_a_url_stays_as_it_was_typed() -> None:
    assert locate("HTTPS://host/a%20b/").address == "https://host/a%20b"
    assert locate("http://[::1]:80").address == "http://[::1]:80"


def test_a_token_does_not_pass_in_the_clear(tmp_path: Path) -> None:
    options = Opening(tmp_path, "secret")
    with pytest.raises(InvalidInput, match="in the clear"):
        open_registry("http://registry.example.com", opening=options)
    for url in ("https://registry.example.com", "http://127.0.0.1:1", "http://localhost"):
        assert open_registry(url, opening=options).name == url
    assert "secret" not in repr(options)


def test_a_token_is_in_no_message(service: Served, tmp_path: Path) -> None:
    told = HttpService(service.url, "secret\n", AnswerCache(tmp_path), pause=lambda _: None)
    with pytest.raises(RegistryUnreachable, match="LocalProtocolError") as raised:
        told.get("/v1/candidates")
    assert "secret" not in str(raised.value)


def test_a_token_in_the_clear_goes_to_no_proxy(
    service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert opened(service, tmp_path).candidates() == ()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("registry.http_registry", "registry.http_client"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(InvalidInput, match="httpx2") as raised:
        open_registry("https://registry.example.com")
    assert raised.value.hint == "pip install 'diffusion-tuner[http]'"


def test_a_token_that_does_not_do_is_told(service: Served, tmp_path: Path) -> None:
    wrong = HttpRegistry(HttpService(service.url, "wrong", AnswerCache(tmp_path)), tmp_path)
    with pytest.raises(AccessDenied, match="not known") as raised:
        wrong.candidates()
    assert "TUNER_REGISTRY_TOKEN" in (raised.value.hint or "")
    with pytest.raises(AccessDenied, match="needs 'publish'"):
        opened(service, tmp_path, "read").publish([samples.record()], now=NOW)


def test_a_token_for_another_service_is_told_as_that(service: Served, tmp_path: Path) -> None:
    database = service.folder / "registry.sqlite3"
    options = Opening(tmp_path, "secret", token_for=("https://registry.example.com",))
    with served(database, tmp_path, Options(policy=Policy(open_reading=False))) as closed_service:
        registry = open_registry(closed_service.url, create=False, opening=options)
        with pytest.raises(AccessDenied) as raised:
            registry.candidates()
    assert "not shown to this one" in (raised.value.hint or "")


def test_what_only_a_database_does_is_refused(registry: Registry) -> None:
    with pytest.raises(RegistryReadOnly, match="takes no studies"):
        begin(registry)
    with pytest.raises(RegistryReadOnly):
        registry.require_writable()
    with pytest.raises(RegistryReadOnly):
        registry.jobs.enqueue(samples.job(), priority=1, now=NOW)
    for refused in (registry.jobs.counts, registry.all_timings):
        with pytest.raises(RegistryError, match="over HTTP"):
            refused()
    assert "over HTTP" in registry.check()[0]
    with pytest.raises(InvalidInput, match="served elsewhere"):
        upgrade_registry(registry.name)
    with pytest.raises(InvalidInput, match="not a file"):
        _ = registry.path


# Reading


def test_studies_and_trials_are_read(service: Served, registry: Registry) -> None:
    study = begin(service.registry)
    service.registry.add_trial(study.id, samples.trial())
    assert registry.studies(model_name="tiny-flux") == (study,)
    assert registry.study(study.id[:8]) == study
    assert registry.trials(study.id) == (samples.trial(),)
    digest = samples.trial().plan.digest
    assert registry.trials_of_plan(digest) == ((study, samples.trial()),)
    assert registry.trials_of_plan("f" * 64) == ()


def test_many_records_come_in_pages(
    service: Served, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_registry, "PAGE_LIMIT", 2)
    many = [samples.record(threads=number + 1) for number in range(5)]
    service.registry.publish(many, now=NOW)
    assert registry.candidates() == service.registry.candidates()
    assert registry.history(limit=3) == service.registry.history(limit=3)


def test_a_record_that_this_release_cannot_read_is_left_out(
    service: Served, registry: Registry
) -> None:
    old, new = samples.record(), samples.record(threads=2)
    service.registry.publish([old], now=NOW)
    written = {**new.model_dump(mode="json"), "invented_later": 1}
    service.registry.publish([new], now=NOW, bodies=None)
    answers = registry._service.get("/v1/candidates")  # type: ignore[attr-defined]
    answers["records"][0]["record"] = written
    registry._service.get = lambda *_: answers  # type: ignore[attr-defined]
    assert [item.record for item in registry.candidates()] == [old]
    answers["records"][0] = {**answers["records"][1], "minimum_reader": 99}
    assert [item.record for item in registry.candidates()] == [old]
    answers["records"][0] = {**answers["records"][1]}
    answers["records"][0]["record"] = {**old.model_dump(mode="json")}
    answers["records"][0]["record"]["plan"] = new.plan.model_dump(mode="json")
    assert [item.record for item in registry.candidates()] == [old]


# What was fetched before


def test_what_was_fetched_serves_while_nobody_answers(
    service: Served, tmp_path: Path, keys: SigningKeys
) -> None:
    artifact = service.registry.put_artifact("compile_cache", b"compiled")
    record = samples.record(artifacts=(artifact,))
    service.registry.publish([record], now=NOW, keys=keys)
    online = opened(service, tmp_path / "cache")
    (found,) = online.candidates(model_name="tiny-flux")
    assert online.inventory("a:b") is None
    assert online.trusted_artifact(found, artifact, keys) == b"compiled"
    assert online.notes == ()

    offline = closed(service.url, tmp_path / "cache")
    assert offline.candidates(model_name="tiny-flux") == (found,)
    assert offline.inventory("a:b") is None
    assert offline.trusted_artifact(found, artifact, keys) == b"compiled"
    assert "did not answer" in offline.notes[0]
    with pytest.raises(RegistryUnreachable):
        offline.candidates(model_name="sdxl")
    with pytest.raises(RegistryUnreachable):
        offline.publish([samples.record()], now=NOW)
    offline.note_fetch(record.id, NOW)


@pytest.fixture
def keys(tmp_path: Path) -> SigningKeys:
    return SigningKeys(tmp_path / "keys")


def closed(url: str, folder: Path) -> HttpRegistry:
    """The registry at `url`, whose every connection fails."""
    service = HttpService(url, None, AnswerCache(folder), pause=lambda _: None)

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused")

    service._client = httpx2.Client(transport=httpx2.MockTransport(fail))
    return HttpRegistry(service, folder)


def test_an_answer_that_is_known_is_not_fetched_again(service: Served, tmp_path: Path) -> None:
    service.registry.publish([samples.record()], now=NOW)
    registry = opened(service, tmp_path)
    first = registry.candidates()
    seen: list[int] = []
    registry._service._client.event_hooks["response"].append(
        lambda answer: seen.append(answer.status_code)
    )
    assert registry.candidates() == first
    service.registry.publish([samples.record(minutes=1)], now=NOW)
    assert registry.candidates() != first
    assert seen == [304, 200]


def test_damage_in_the_cache_is_a_miss(service: Served, tmp_path: Path, keys: SigningKeys) -> None:
    artifact = service.registry.put_artifact("log", b"said the worker")
    registry = opened(service, tmp_path / "cache")
    assert registry.read_artifact(artifact) == b"said the worker"
    registry.candidates()
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    assert registry.read_artifact(artifact) == b"said the worker"
    with pytest.raises(RegistryUnreachable):
        closed(service.url, tmp_path / "cache").history()


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache(tmp_path)
    monkeypatch.setattr(http_cache, "ANSWERS_KEPT", 5)
    for number in range(8):
        cache.put(f"question {number}", Fetched(200, None, NOW, b"{}"))
    assert len(list((tmp_path / "answers").iterdir())) == 5
    sizes = [tmp_path / name for name in "abc"]
    for number, path in enumerate(sizes):
        path.write_bytes(b"x" * 10)
        os.utime(path, (number, number))
    trim(sizes, most_bytes=25)
    assert [path.exists() for path in sizes] == [False, True, True]


def test_what_was_sent_is_kept_within_the_same_bounds(
    service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_registry, "ARTIFACT_BYTES_KEPT", 10)
    registry = opened(service, tmp_path / "cache")
    for data in (b"12345678", b"abcdefgh"):
        registry.put_artifact("compile_cache", data)
    assert len(list(registry._artifacts.files())) == 1


def test_what_was_begun_long_ago_is_removed(service: Served, tmp_path: Path) -> None:
    options = Opening(tmp_path / "cache", service.secrets["read"])
    registry = open_registry(service.url, opening=options)
    old, new = (registry._artifacts.temporary() for _ in range(2))
    os.utime(old, (0, 0))
    open_registry(service.url, opening=options)
    assert list(registry._artifacts.temporaries()) == [new]


def test_a_cache_that_cannot_be_written_is_done_without(service: Served, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    registry = opened(service, tmp_path / "cache")
    assert registry.candidates() == ()


# Services that fail or lie


class Stub:
    """A service whose answers a test gives: status and JSON, or an exception, one a request."""

    def __init__(self, *answers: tuple[int, Any] | httpx2.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        self.paused: list[float] = []
        self.now_s = 0.0

    def registry(self, folder: Path) -> HttpRegistry:
        service = HttpService(
            "https://registry.example.com",
            "token",
            AnswerCache(folder),
            monotonic_s=lambda: self.now_s,
            pause=self.paused.append,
        )
        service._client = httpx2.Client(transport=httpx2.MockTransport(self._answer))
        return HttpRegistry(service, folder)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.method)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        status, body = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.Response(status, content=content)


PAGE: tuple[int, Any] = (200, {"records": [], "after": None})


def test_a_failure_that_passes_is_tried_again(tmp_path: Path) -> None:
    stub = Stub(httpx2.ConnectTimeout("slow"), (503, {}), PAGE)
    assert stub.registry(tmp_path).candidates() == ()
    assert stub.paused == [0.2, 0.8]


def test_what_is_not_the_same_twice_is_asked_once(tmp_path: Path) -> None:
    asked: list[Callable[[Registry], object]] = [
        lambda registry: registry.rollback("f" * 64, now=NOW),
        lambda registry: registry.unpin("f" * 64),
    ]
    for ask in asked:
        stub = Stub(httpx2.ReadError("cut off"), PAGE)
        with pytest.raises(RegistryUnreachable):
            ask(stub.registry(tmp_path))
        assert len(stub.asked) == 1


def test_who_is_silent_for_long_is_asked_once(tmp_path: Path) -> None:
    stub = Stub(httpx2.ReadTimeout("silent"), PAGE)
    with pytest.raises(RegistryUnreachable):
        stub.registry(tmp_path).candidates()
    assert stub.paused == []


def test_a_proxy_before_a_service_that_is_down_is_no_answer(tmp_path: Path) -> None:
    stub = Stub(PAGE, *[(502, b"<html>bad gateway")] * 3)
    registry = stub.registry(tmp_path)
    assert registry.candidates() == registry.candidates()
    assert "did not answer" in registry.notes[0]


def test_who_does_not_answer_is_left_alone_for_a_while(tmp_path: Path) -> None:
    failures = [httpx2.ConnectError("refused")] * 3
    stub = Stub(*failures, PAGE)
    registry = stub.registry(tmp_path)
    for stub.now_s in (0.0, OFFLINE_S - 1):
        with pytest.raises(RegistryUnreachable):
            registry.candidates()
    assert len(stub.asked) == 3
    stub.now_s = OFFLINE_S + 1
    assert registry.candidates() == ()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b"<html>"), RegistryCorrupt),
        ((200, b"[" * 100_000), RegistryCorrupt),
        ((404, b"<html>not found"), RegistryError),
        ((302, {}), RegistryError),
        ((500, {}), RegistryError),
        ((418, {"title": "x", "status": 418, "detail": "y", "kind": "RegistryTooNew"}),
         RegistryTooNew),
        ((418, {"title": "x", "status": 418, "detail": "y", "kind": "Exception"}), RegistryError),
        ((418, {"title": "x", "status": 418, "detail": "y", "kind": "Interrupted"}), RegistryError),
        ((200, {"ok": True}), RegistryCorrupt),
        ((200, []), RegistryCorrupt),
        ((200, {"records": 1, "after": None}), RegistryCorrupt),
    ],
)  # fmt: skip
def test_what_is_no_answer_of_ours_is_an_error(
    tmp_path: Path, answer: tuple[int, Any], error: type[RegistryError]
) -> None:
    with pytest.raises(error):
        Stub(answer).registry(tmp_path).candidates()


@pytest.mark.parametrize("wrong", [b"<html>please log in", b'{"ok": true}'])
def test_a_wrong_answer_does_not_replace_what_was_fetched(tmp_path: Path, wrong: bytes) -> None:
    stub = Stub(PAGE, (200, wrong), httpx2.ConnectError("refused"), *[(503, {})] * 2, PAGE)
    registry = stub.registry(tmp_path)
    for _ in range(3):
        assert registry.candidates() == ()
    assert "did not answer" in registry.notes[0]
    stub.now_s = OFFLINE_S + 1
    assert registry.candidates() == ()
    assert registry.notes == ()


def test_a_packed_answer_that_is_damaged_is_none(tmp_path: Path) -> None:
    damaged = httpx2.Response(
        200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(b"not packed")
    )
    with pytest.raises(RegistryUnreachable):
        Stub(damaged).registry(tmp_path).candidates()


class Dripping(httpx2.SyncByteStream):
    """A byte every ten seconds, as the stub's clock goes."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    @override
    def __iter__(self) -> Iterator[bytes]:
        for _ in range(100):
            self._stub.now_s += 10
            yield b" "


def test_an_answer_that_drips_is_not_waited_for(tmp_path: Path) -> None:
    stub = Stub()
    stub._answers.append(httpx2.Response(200, stream=Dripping(stub)))
    with pytest.raises(RegistryUnreachable, match="longer than 30 s"):
        stub.registry(tmp_path).candidates()
    assert stub.now_s == 40


@pytest.mark.parametrize("wrong", ["created_at", "number"])
def test_a_record_that_is_none_is_left_out(service: Served, registry: Registry, wrong: str) -> None:
    service.registry.publish([samples.record(), samples.record(threads=2)], now=NOW)
    answers = registry._service.get("/v1/candidates")  # type: ignore[attr-defined]
    record = answers["records"][0]["record"]
    if wrong == "number":
        record["measurement"]["step_ms"] = float("inf")
    else:
        record["created_at"] = record["created_at"].removesuffix("Z")
    registry._service.get = lambda *_: answers  # type: ignore[attr-defined]
    assert len(registry.candidates()) == 1


def test_an_inventory_may_be_of_a_folder_with_a_long_path(registry: Registry) -> None:
    assert registry.inventory(f"folder:/{'long/' * 100}:pretrained") is None


@pytest.mark.parametrize("sent", [b"other", b"said the worker, and much more"])
def test_other_bytes_than_the_artifacts_are_not_kept(tmp_path: Path, sent: bytes) -> None:
    right = b"said the worker"
    ref = ArtifactRef(kind="log", sha256=sha256_of(right), size_bytes=len(right))
    registry = Stub((200, sent), (200, right)).registry(tmp_path)
    with pytest.raises(RegistryCorrupt, match="not its bytes"):
        registry.read_artifact(ref)
    assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
    assert registry.read_artifact(ref) == right


def test_a_service_cannot_vouch_for_an_artifact(
    service: Served, tmp_path: Path, keys: SigningKeys
) -> None:
    """Signed by a key that the service trusts, and this user does not."""
    artifact = service.registry.put_artifact("compile_cache", b"compiled")
    service.registry.publish([samples.record(artifacts=(artifact,))], now=NOW, keys=keys)
    registry = opened(service, tmp_path / "cache")
    (found,) = registry.candidates()
    with pytest.raises(UntrustedArtifact, match="not trusted here"):
        registry.trusted_artifact(found, artifact, SigningKeys(tmp_path / "own"))
    with pytest.raises(RecordNotFound):
        registry.record("f" * 64)
