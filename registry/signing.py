"""Who made an artifact: Ed25519 signatures and the keys a user trusts.

Compile artifacts run code when they are loaded, so nothing from a registry reaches torch, pickle or
the linker before a trusted key's signature is verified over the very bytes. The statement signed
names the record's key: bytes of one model, shape or plan never pass as another's. It names its
producer and the record's time as well.

Keys and the trust list belong to the user's configuration, never to a registry.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from typing import Literal, Protocol, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, Field, ValidationError, field_validator

from registry.base import Frozen
from registry.digest import canonical_json
from registry.errors import InvalidInput, TrustListUnreadable, UntrustedArtifact
from registry.private_files import locked, private_file
from registry.record import ArtifactKind, ArtifactRef, TuningRecord
from registry.rows import sha256_of

KEY_FILE = "signing-key.pem"
TRUST_FILE = "trusted-keys.json"
_KEY_ID_LENGTH = 16

StatementFormat = Literal[1, 2]
FORMAT: StatementFormat = 2
"""Of new signatures. Those of the first format stay good."""


class ArtifactStatement(Frozen):
    """What a signature says: these bytes, of this kind, belong to records of this key, and their
    producer, who signs, made them then.

    `kind` "tuning_record" is the record's own canonical JSON; `made_at` is when the record was
    made, None where nobody knows.
    """

    kind: ArtifactKind | Literal["tuning_record"]
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    record_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    made_at: AwareDatetime | None = None

    @classmethod
    def of_record(cls, body: bytes, record: TuningRecord) -> ArtifactStatement:
        """`body` is the record's canonical JSON, as it was stored."""
        return cls(
            kind="tuning_record",
            size_bytes=len(body),
            sha256=sha256_of(body),
            record_key=record.key.digest,
            made_at=record.created_at,
        )

    @classmethod
    def of(cls, artifact: ArtifactRef, record: TuningRecord) -> ArtifactStatement:
        return cls(
            kind=artifact.kind,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            record_key=record.key.digest,
            made_at=record.created_at,
        )

    def signed_bytes(self, producer: str, form: StatementFormat = FORMAT) -> bytes:
        """Canonical JSON of what a key, whose id is `producer`, signs in this format. The first
        one named neither producer nor time."""
        said: dict[str, object] = {
            "format": form,
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "record_key": self.record_key,
        }
        if form > 1:
            moment = None if self.made_at is None else self.made_at.astimezone(UTC).isoformat()
            said |= {"producer": producer, "made_at": moment}
        return canonical_json(said)


class BundleStatement(Frozen):
    """What the signature of a bundle says: this is its manifest, which names all that is in it."""

    format: Literal[1] = 1
    kind: Literal["bundle"] = "bundle"
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def of(cls, manifest: bytes) -> BundleStatement:
        return cls(size_bytes=len(manifest), sha256=sha256_of(manifest))

    def signed_bytes(self, _producer: str, _form: StatementFormat = FORMAT) -> bytes:
        """Its canonical JSON, in every format: the manifest tells of what is in it."""
        return canonical_json(self)


Statement = ArtifactStatement | BundleStatement


def statements(record: TuningRecord, body: bytes) -> Iterator[ArtifactStatement]:
    """Everything of a record that is signed; `body` is its canonical JSON, as it was written."""
    yield ArtifactStatement.of_record(body, record)
    for artifact in record.artifacts:
        yield ArtifactStatement.of(artifact, record)


class Signature(Frozen):
    """`key_id` is a short digest of the public key; `value` is base64."""

    key_id: str
    value: str


class TrustedKey(Frozen):
    """`public_key` is base64 of the 32 raw bytes."""

    name: str
    public_key: str

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        Ed25519PublicKey.from_public_bytes(_bytes(text))
        return text

    @property
    def key_id(self) -> str:
        return key_id(_bytes(self.public_key))


class TrustList(Frozen):
    format: Literal[1] = 1
    keys: tuple[TrustedKey, ...] = ()


def key_id(public_key: bytes) -> str:
    return sha256_of(public_key)[:_KEY_ID_LENGTH]


class Signer(Protocol):
    """Who signs what is published."""

    def sign(self, statement: ArtifactStatement) -> Signature | None:
        """None: it stays unsigned."""


class GivenSignatures:
    """Signatures that came along with what they are of, from another machine or registry."""

    def __init__(self, given: Mapping[ArtifactStatement, Signature]) -> None:
        self._given = given

    def sign(self, statement: ArtifactStatement) -> Signature | None:
        return self._given.get(statement)


class SigningKeys:
    """The user's own key pair, made at first use, and the list of public keys the user trusts.

    `directory` is in the user's configuration folder. The own key is trusted without being listed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def public_key(self) -> TrustedKey:
        """The own public key, to be given to those who shall trust it."""
        return TrustedKey(
            name="own", public_key=_text(self._own_key().public_key().public_bytes_raw())
        )

    def sign(self, statement: Statement) -> Signature:
        key = self._own_key()
        producer = key_id(key.public_key().public_bytes_raw())
        value = key.sign(statement.signed_bytes(producer))
        return Signature(key_id=producer, value=_text(value))

    def verify(self, statement: Statement, signature: Signature | None) -> None:
        """Raises UntrustedArtifact unless a trusted key signed exactly this statement."""
        what = f"{statement.kind} {statement.sha256[:12]}"
        if signature is None:
            raise UntrustedArtifact(f"{what} is not signed", hint=_TRUST_HINT)
        key = self._trusted_key(signature.key_id)
        if key is None:
            raise UntrustedArtifact(
                f"{what} is signed by key {signature.key_id}, which is not trusted here",
                hint=_TRUST_HINT,
            )
        if not _is_signed(statement, signature, Ed25519PublicKey.from_public_bytes(key)):
            raise UntrustedArtifact(
                f"{what} does not carry a valid signature of key {signature.key_id}: it was "
                "changed, or signed for another record",
            )

    def trusted(self) -> tuple[TrustedKey, ...]:
        """The own key first, if it was made. Raises UntrustedArtifact on an unreadable list."""
        own = (self.public_key,) if self._key_path.exists() else ()
        return own + self._listed().keys

    def trust(self, name: str, public_key: str) -> TrustedKey:
        """Add a base64 public key to the list, or rename it. Raises InvalidInput."""
        try:
            key = TrustedKey(name=name, public_key=public_key)
        except ValidationError as error:
            raise InvalidInput(
                f"{public_key!r} is not an Ed25519 public key (base64 of 32 bytes)"
            ) from error
        with locked(self._directory):
            others = tuple(one for one in self._listed().keys if one.key_id != key.key_id)
            self._write_list(TrustList(keys=(*others, key)))
        return key

    def find(self, wanted: str) -> TrustedKey:
        """A trusted key by its name or id. Raises InvalidInput where none or several are meant."""
        return _one_of(self.trusted(), wanted)

    def revoke(self, unwanted: str) -> TrustedKey:
        """Take a key off the list, by its name or id. Raises InvalidInput where it is not on it."""
        with locked(self._directory):
            listed = self._listed().keys
            gone = _one_of(listed, unwanted)
            self._write_list(TrustList(keys=tuple(one for one in listed if one != gone)))
        return gone

    @property
    def _key_path(self) -> Path:
        return self._directory / KEY_FILE

    def _trusted_key(self, wanted: str) -> bytes | None:
        keys = [_bytes(key.public_key) for key in self.trusted() if key.key_id == wanted]
        return keys[0] if keys else None

    def _own_key(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives import serialization

        if not self._key_path.exists():
            self._make_key()
        try:
            key = serialization.load_pem_private_key(self._key_path.read_bytes(), password=None)
        except ValueError as error:
            raise InvalidInput(f"{self._key_path} is not a private key ({error})") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(f"{self._key_path} is not an Ed25519 key")
        return key

    def _make_key(self) -> None:
        """Of several processes that meet no key, one wins and all use its key."""
        from cryptography.hazmat.primitives import serialization

        data = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        temporary = private_file(self._directory, data)
        try:
            os.link(temporary, self._key_path)
        except FileExistsError:
            return
        finally:
            temporary.unlink()

    def _listed(self) -> TrustList:
        path = self._directory / TRUST_FILE
        if not path.exists():
            return TrustList()
        try:
            return TrustList.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise TrustListUnreadable(
                f"the list of trusted keys {path} cannot be read ({error.error_count()} errors)",
                hint="Mend or remove it; until then no signature is trusted.",
            ) from error

    def _write_list(self, trust: TrustList) -> None:
        data = trust.model_dump_json(indent=2).encode()
        private_file(self._directory, data).replace(self._directory / TRUST_FILE)


def _is_signed(statement: Statement, signature: Signature, public: Ed25519PublicKey) -> bool:
    """In any format: each has its number in what is signed, so that none passes as another."""
    for form in get_args(StatementFormat):
        said = statement.signed_bytes(signature.key_id, form)
        with suppress(InvalidSignature, ValueError):
            public.verify(_bytes(signature.value), said)
            return True
    return False


def _one_of(keys: Iterable[TrustedKey], wanted: str) -> TrustedKey:
    found = [key for key in keys if wanted in (key.key_id, key.name)]
    if not found:
        raise InvalidInput(f"key {wanted!r} is not on the trust list")
    if len(found) > 1:
        ids = ", ".join(key.key_id for key in found)
        raise InvalidInput(f"several keys are called {wanted!r}: name one of {ids}")
    return found[0]


_TRUST_HINT = "If you know who made it, add their public key with `tuner keys trust`."


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """Raises ValueError (binascii.Error) on anything but base64."""
    return base64.b64decode(text, validate=True)
