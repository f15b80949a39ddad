"""Who is let in."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from registry.errors import InvalidInput, RegistryError
from registry.server.access import needed
from registry.server.tokens import Role, Tokens
from tests.registry.samples import NOW


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "config")


def test_a_secret_is_known_and_kept_nowhere(tokens: Tokens) -> None:
    secret = tokens.create("alice", "publish", NOW)
    assert len(secret) > 40
    found = tokens.bearer(secret)
    assert found is not None
    assert (found.name, found.role, found.created_at) == ("alice", "publish", NOW)
    assert secret not in tokens.path.read_text()
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    for wrong in ("", secret[:-1], secret + "x", found.sha256, "\udcff"):
        assert tokens.bearer(wrong) is None


def test_a_change_counts_at_once(tokens: Tokens) -> None:
    serving = Tokens(tokens.path.parent)
    secret = tokens.create("alice", "read", NOW)
    assert serving.bearer(secret) is not None
    tokens.revoke("alice")
    assert serving.bearer(secret) is None
    again = tokens.create("alice", "read", NOW)
    assert again != secret
    assert serving.bearer(again) is not None


def test_names_are_names_and_taken_once(tokens: Tokens) -> None:
    tokens.create("alice", "read", NOW)
    with pytest.raises(InvalidInput, match="already"):
        tokens.create("alice", "admin", NOW)
    for wrong in ("", "a b", "a/b", "a\n", "x" * 65):
        with pytest.raises(InvalidInput, match="not a token's name"):
            tokens.create(wrong, "read", NOW)
    with pytest.raises(InvalidInput, match="no token"):
        tokens.revoke("bob")
    assert [token.name for token in tokens.all()] == ["alice"]


def test_tokens_made_at_once_are_all_kept(tokens: Tokens) -> None:
    names = [f"t{number}" for number in range(8)]
    makers = [
        threading.Thread(target=Tokens(tokens.path.parent).create, args=(name, "read", NOW))
        for name in names
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert sorted(token.name for token in tokens.all()) == names


def test_a_list_that_cannot_be_read_lets_nobody_in(tokens: Tokens) -> None:
    secret = tokens.create("alice", "read", NOW)
    tokens.path.write_text(tokens.path.read_text()[:-9])
    with pytest.raises(RegistryError, match="cannot be read"):
        tokens.bearer(secret)


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v1/candidates", "read"),
        ("HEAD", "/v1/artifacts/aa", "read"),
        ("POST", "/v1/plan", "read"),
        ("POST", "/v1/records", "publish"),
        ("PUT", "/v1/artifacts/aa", "publish"),
        ("PUT", "/v1/artifacts", "admin"),
        ("POST", "/v1/records/", "admin"),
        ("POST", "/v1/records/aaaa/revoke", "admin"),
        ("DELETE", "/v1/anything", "admin"),
        ("BREW", "/v1/candidates", "admin"),
    ],
)
def test_what_a_request_needs(method: str, path: str, role: Role) -> None:
    assert needed(method, path) == role
