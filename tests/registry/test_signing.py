"""Only a trusted key's signature over exactly these bytes for exactly this record will do."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from registry.errors import InvalidInput, UntrustedArtifact
from registry.signing import (
    KEY_FILE,
    TRUST_FILE,
    ArtifactStatement,
    Signature,
    SigningKeys,
)
from tests.registry import children

STATEMENT = ArtifactStatement(
    kind="compile_cache",
    size_bytes=8,
    sha256="a" * 64,
    record_key="b" * 64,
    made_at=datetime(2026, 11, 1, 12, tzinfo=UTC),
)


@pytest.fixture
def keys(tmp_path: Path) -> SigningKeys:
    return SigningKeys(tmp_path / "config" / "keys")


@pytest.fixture
def strangers(tmp_path: Path) -> SigningKeys:
    return SigningKeys(tmp_path / "strangers")


def test_the_own_key_is_trusted_from_the_start(keys: SigningKeys) -> None:
    keys.verify(STATEMENT, keys.sign(STATEMENT))
    assert [key.name for key in keys.trusted()] == ["own"]


def test_the_key_is_made_once_and_private(keys: SigningKeys, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "keys"
    assert keys.trusted() == ()
    assert not folder.exists()
    first = keys.sign(STATEMENT)
    assert SigningKeys(folder).sign(STATEMENT) == first
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]


def test_first_uses_at_once_make_one_key(tmp_path: Path) -> None:
    made = children.together(children.sign, [(tmp_path / "keys",)] * 8)
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "aot_package"},
        {"size_bytes": 9},
        {"sha256": "c" * 64},
        {"record_key": "c" * 64},
        {"kind": "tuning_record"},
        {"made_at": datetime(2026, 11, 1, 13, tzinfo=UTC)},
        {"made_at": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_for_one_statement(keys: SigningKeys, change: dict[str, object]) -> None:
    signature = keys.sign(STATEMENT)
    with pytest.raises(UntrustedArtifact, match="valid signature"):
        keys.verify(STATEMENT.model_copy(update=change), signature)


def own_private_key(folder: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key((folder / KEY_FILE).read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def signed_by_hand(folder: Path, said: bytes, key_id: str) -> Signature:
    value = base64.b64encode(own_private_key(folder).sign(said)).decode()
    return Signature(key_id=key_id, value=value)


def test_a_signature_of_the_first_format_is_still_good(keys: SigningKeys, tmp_path: Path) -> None:
    """It named neither producer nor time, and was over these bytes to the letter."""
    own = keys.sign(STATEMENT).key_id
    said = (
        f'{{"format":1,"kind":"compile_cache","record_key":"{"b" * 64}",'
        f'"sha256":"{"a" * 64}","size_bytes":8}}'
    )
    signature = signed_by_hand(tmp_path / "config" / "keys", said.encode(), own)
    keys.verify(STATEMENT, signature)
    with pytest.raises(UntrustedArtifact, match="valid signature"):
        keys.verify(STATEMENT.model_copy(update={"size_bytes": 9}), signature)


@pytest.mark.parametrize("form", [0, 3])
def test_a_signature_of_an_unknown_format_is_refused(
    keys: SigningKeys, tmp_path: Path, form: Any
) -> None:
    own = keys.sign(STATEMENT).key_id
    said = STATEMENT.signed_bytes(own, form)
    with pytest.raises(UntrustedArtifact, match="valid signature"):
        keys.verify(STATEMENT, signed_by_hand(tmp_path / "config" / "keys", said, own))


def test_the_producer_is_part_of_what_is_signed(keys: SigningKeys, tmp_path: Path) -> None:
    own = keys.sign(STATEMENT).key_id
    said = STATEMENT.signed_bytes("0123456789abcdef")
    with pytest.raises(UntrustedArtifact, match="valid signature"):
        keys.verify(STATEMENT, signed_by_hand(tmp_path / "config" / "keys", said, own))


def test_the_same_moment_in_another_zone_is_the_same_statement(keys: SigningKeys) -> None:
    assert STATEMENT.made_at is not None
    elsewhere = STATEMENT.made_at.astimezone(timezone(timedelta(hours=5)))
    keys.verify(STATEMENT.model_copy(update={"made_at": elsewhere}), keys.sign(STATEMENT))


def test_a_strangers_signature_is_refused(keys: SigningKeys, strangers: SigningKeys) -> None:
    signature = strangers.sign(STATEMENT)
    with pytest.raises(UntrustedArtifact, match="not trusted here"):
        keys.verify(STATEMENT, signature)
    own = keys.sign(STATEMENT)
    for forged in (
        Signature(key_id=own.key_id, value=signature.value),
        Signature(key_id=own.key_id, value="not base64!"),
        Signature(key_id=own.key_id, value=""),
        None,
    ):
        with pytest.raises(UntrustedArtifact):
            keys.verify(STATEMENT, forged)


def test_trust_is_given_and_taken(keys: SigningKeys, strangers: SigningKeys) -> None:
    signature = strangers.sign(STATEMENT)
    trusted = keys.trust("colleague", strangers.public_key.public_key)
    assert trusted.key_id == signature.key_id
    keys.verify(STATEMENT, signature)
    keys.trust("colleague, renamed", strangers.public_key.public_key)
    assert [key.name for key in keys.trusted()] == ["colleague, renamed"]
    keys.revoke(trusted.key_id)
    with pytest.raises(UntrustedArtifact):
        keys.verify(STATEMENT, signature)
    with pytest.raises(InvalidInput, match=trusted.key_id):
        keys.revoke(trusted.key_id)


@pytest.mark.parametrize("text", ["", "x", "AAAA", "ssh-ed25519 AAAAC3"])
def test_what_is_no_key_is_refused(keys: SigningKeys, text: str) -> None:
    with pytest.raises(InvalidInput, match="base64 of 32 bytes"):
        keys.trust("somebody", text)


@pytest.mark.parametrize("text", ["", "{", '{"keys": [{"name": "x", "public_key": "AAAA"}]}'])
def test_an_unreadable_list_trusts_nobody(
    keys: SigningKeys, strangers: SigningKeys, tmp_path: Path, text: str
) -> None:
    signature = strangers.sign(STATEMENT)
    keys.trust("colleague", strangers.public_key.public_key)
    (tmp_path / "config" / "keys" / TRUST_FILE).write_text(text)
    with pytest.raises(UntrustedArtifact, match="cannot be read"):
        keys.verify(STATEMENT, signature)


def test_a_broken_key_file_is_named(keys: SigningKeys, tmp_path: Path) -> None:
    keys.sign(STATEMENT)
    (tmp_path / "config" / "keys" / KEY_FILE).write_text("not a key")
    with pytest.raises(InvalidInput, match=KEY_FILE):
        keys.sign(STATEMENT)
