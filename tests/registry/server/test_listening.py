"""Where the service may listen; and the service as a process of its own."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import stat
import sys
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
import trustme

from registry.__main__ import main
from registry.errors import InvalidInput
from registry.server import running
from registry.server.listening import Address, Tls, check, listening
from registry.server.tokens import Tokens
from tests.registry.samples import NOW
from tests.registry.server.serving import started

BEYOND = ["0.0.0.0", "::", "192.0.2.1"]


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "home" / "config")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    found = Tls(folder / "certificate.pem", folder / "key.pem")
    found.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(found.key)
    return found


@pytest.mark.parametrize("host", BEYOND)
def test_beyond_this_machine_it_needs_a_token_and_tls(host: str, tokens: Tokens, tls: Tls) -> None:
    with pytest.raises(InvalidInput, match="no TLS"):
        check(Address(host), None, tokens)
    with pytest.raises(InvalidInput, match="no token"):
        check(Address(host), tls, tokens)
    tokens.create("alice", "read", NOW)
    with pytest.raises(InvalidInput, match="no TLS"):
        check(Address(host), None, tokens)
    check(Address(host), tls, tokens)
    assert not Address(host).policy.open_reading


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_may_read_without(host: str, tokens: Tokens) -> None:
    check(Address(host), None, tokens)
    assert Address(host).policy.open_reading
    assert not Address(host, requires_token=True).policy.open_reading


def test_a_certificate_needs_its_own_key(tls: Tls, authority: trustme.CA, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert("localhost").private_key_pem.write_to_path(other)
    for key in (other, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match="no certificate and its key"):
            check(Address(), Tls(tls.certificate, key), Tokens(tmp_path))


def test_a_port_that_is_taken_is_told() -> None:
    with listening(Address(port=0)) as (listener, _):
        port = listener.getsockname()[1]
        with pytest.raises(InvalidInput, match=str(port)), listening(Address(port=port)):
            pass


def test_a_socket_is_its_owners_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(Address(unix_socket=path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with (
            pytest.raises(InvalidInput, match=r"service\.sock"),
            listening(Address(unix_socket=path)),
        ):
            pass
    assert not path.exists()


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match="too long"),
        listening(Address(unix_socket=tmp_path / ("s" * 200))),
    ):
        pass


@pytest.mark.parametrize("host", BEYOND)
def test_the_command_refuses_to_start(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--home", str(tmp_path / "home"), "serve", "--registry", str(tmp_path / "r.sqlite3")]
    assert main([*command, "--host", host, "--port", "0"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err


def test_over_tls_with_a_token(
    tmp_path: Path, tokens: Tokens, tls: Tls, authority: trustme.CA
) -> None:
    secret = tokens.create("alice", "read", NOW)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = ["--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key)]
    with (
        started(tmp_path, *files, "--host", "0.0.0.0") as (where, _),
        httpx2.Client(verify=context, trust_env=False) as client,
    ):
        assert where.startswith("https://0.0.0.0:")
        url = where.replace("0.0.0.0", "127.0.0.1")
        bearer = {"authorization": f"Bearer {secret}"}
        assert client.get(f"{url}/v1/candidates").status_code == 401
        assert client.get(f"{url}/v1/health").status_code == 200
        assert client.get(f"{url}/v1/candidates", headers=bearer).json()["records"] == []
        with pytest.raises(httpx2.TransportError):
            client.get(url.replace("https", "http") + "/v1/health")


def test_a_tls_handshake_does_not_stand_still(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "HEAD_S", 0.1)
    assert running.server(None).config.get_loop_factory() is running.PatientLoop
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)

    async def silent() -> bytes:
        service = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=context
        )
        reader, writer = await asyncio.open_connection(*service.sockets[0].getsockname())
        async with service:
            try:
                return await asyncio.wait_for(reader.read(), 20)
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=running.PatientLoop) as runner:
        assert runner.run(silent()) == b""


def test_a_lack_of_files_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with closing(running.PatientLoop()) as loop:
        for _ in range(3):
            lack = OSError(errno.EMFILE, "Too many open files")
            loop.call_exception_handler({"message": "accept", "exception": lack})
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        loop.call_exception_handler({"message": "another"})
    assert len(caplog.records) == 2


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    with started(tmp_path, "--unix-socket", str(path)) as (where, _):
        assert where == f"unix:{path}"
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://localhost") as client:
            assert client.get("/v1/candidates").status_code == 200
            assert client.post("/v1/records").status_code == 401
    assert not path.exists()


def test_what_is_served_is_not_served_again(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--home", str(tmp_path), "serve", "--registry", "http://127.0.0.1:1"]
    assert main([*command, "--port", "0"]) == 2
    assert "served already" in capsys.readouterr().err


def test_tokens_are_made_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ["--home", str(tmp_path), "tokens"]
    assert main([*tokens, "create", "alice", "--role", "admin"]) == 0
    secret = capsys.readouterr().out.strip()
    found = Tokens(tmp_path / "config").bearer(secret)
    assert found is not None
    assert found.role == "admin"
    assert main([*tokens, "list"]) == 0
    assert capsys.readouterr().out.startswith("alice\tadmin\t")
    assert main([*tokens, "revoke", "alice"]) == 0
    assert main([*tokens, "revoke", "alice"]) == 2
    assert Tokens(tmp_path / "config").bearer(secret) is None


def test_a_missing_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("registry.server.running")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    command = ["--home", str(tmp_path), "serve", "--registry", str(tmp_path / "r.sqlite3")]
    assert main(command) == 2
    assert "pip install 'diffusion-tuner[serve]'" in capsys.readouterr().err
