"""Only a trusted key's signature over exactly these bytes for exactly this record will do."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    kind="compile_cache", size_bytes=8, sha256="a" * 64, record_key="b" * 64
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
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_for_one_statement(keys: SigningKeys, change: dict[str, object]) -> None:
    signature = keys.sign(STATEMENT)
    with pytest.raises(UntrustedArtifact, match="valid signature"):
        keys.verify(STATEMENT.model_copy(update=change), signature)


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
