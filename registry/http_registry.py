"""A registry over HTTP: read, and published to.

What only a database does (studies, jobs, timings, upkeep) it refuses: tuning needs a registry of
one's own. Artifacts are kept in a folder of this machine and proved by their digest each time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection
from typing_extensions import override

from registry.artifacts import ArtifactFolder, Staged
from registry.database import WRITE_WAIT_S, Database
from registry.digest import canonical_json, digest, short
from registry.errors import (
    RecordNotFound,
    RegistryCorrupt,
    RegistryError,
    RegistryReadOnly,
    RegistryTooNew,
    UntrustedArtifact,
)
from registry.http_cache import ARTIFACT_BYTES_KEPT, AnswerCache, remove_older, trim
from registry.http_client import HttpService, Parameters
from registry.location import Opening
from registry.plan import PLAN_FORMAT
from registry.record import ArtifactRef, Trial, TuningRecord
from registry.records import StoredRecord
from registry.rows import prefix_range, to_time
from registry.signing import ArtifactStatement, Signature, Signer, SigningKeys, statements
from registry.store import Registry
from registry.studies import StudyEnd, StudyRow
from registry.wire import (
    API,
    PAGE_LIMIT,
    StatementSignature,
    TriedPlan,
    signatures_of,
    stored_of,
)

if TYPE_CHECKING:
    from registry.inventory import ModelInventory
    from registry.leases import Lease

Value = TypeVar("Value")
logger = logging.getLogger(__name__)

ABANDONED = timedelta(days=1)
"""Whoever began a temporary file this long ago is dead."""


class NoDatabase(Database):
    """In place of a database that lies behind a service: everything that needs it is refused."""

    @override
    def read(self) -> AbstractContextManager[Connection]:
        raise RegistryError(
            f"registry {self.name} does not tell this over HTTP", hint=_OWN_REGISTRY
        )

    @override
    def write(self, *, wait_s: float = WRITE_WAIT_S) -> AbstractContextManager[Connection]:
        raise RegistryReadOnly(
            f"registry {self.name} takes no studies, jobs or timings over HTTP, only what was "
            "proved",
            hint=_OWN_REGISTRY,
        )

    @override
    def problems(self, connection: Connection) -> Iterator[str]:
        yield from ()


_OWN_REGISTRY = "Use a registry of your own for this: a file, or PostgreSQL."


class HttpRegistry(Registry):
    """As `Registry`, as far as a service goes. Times are the service's own: `now` is checked and
    not sent. Raises RegistryUnreachable where nobody answers and nothing was fetched before."""

    def __init__(self, service: HttpService, folder: Path) -> None:
        """`folder` keeps what was fetched of this registry."""
        super().__init__(NoDatabase(service.url), ArtifactFolder(folder / "artifacts"))
        self._service = service
        self._signatures: dict[str, Mapping[ArtifactRef, Signature | None]] = {}

    @property
    @override
    def is_served(self) -> bool:
        return True

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        at = self._service.answered_offline
        if at is None:
            return ()
        return (f"registry {self.name} did not answer: this is what was fetched at {at}",)

    @override
    def studies(self, *, model_name: str | None = None, limit: int = 50) -> tuple[StudyRow, ...]:
        answer = self._get("/studies", {"model_name": model_name, "limit": limit})
        return _all(answer, StudyRow.model_validate)

    @override
    def study(self, id_prefix: str) -> StudyRow:
        prefix_range(id_prefix, "study")
        return _one(self._get(f"/studies/{id_prefix}"), StudyRow.model_validate)

    @override
    def trials(self, study_id: str) -> tuple[Trial, ...]:
        prefix_range(study_id, "study")
        return _all(self._get(f"/studies/{study_id}/trials"), Trial.model_validate)

    @override
    def trials_of_plan(
        self, plan_digest: str, *, limit: int = 20
    ) -> tuple[tuple[StudyRow, Trial], ...]:
        answer = self._get(f"/plans/{plan_digest}/trials", {"limit": limit})
        found = _all(answer, TriedPlan.model_validate)
        return tuple((item.study, item.trial) for item in found)

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
        to_time(now)
        if end is not None or lease is not None:
            self._database.write()
        written = bodies or [canonical_json(record) for record in new_records]
        signed = [
            StatementSignature(statement=statement, signature=signature)
            for record, body in zip(new_records, written, strict=True)
            for statement in statements(record, body)
            if keys is not None and (signature := keys.sign(statement)) is not None
        ]
        answer = self._service.send(
            "POST",
            f"{API}/records",
            json={
                "records": [json.loads(body) for body in written],
                "signatures": [item.model_dump(mode="json") for item in signed],
            },
        )
        return tuple(answer["ids"])

    @override
    def candidates(
        self,
        *,
        model_name: str | None = None,
        architecture: str | None = None,
        weights: str | None = None,
        device: str | None = None,
        hardware: str | None = None,
        runtime: str | None = None,
        workload: str | None = None,
        max_peak_vram_bytes: int | None = None,
        max_format: int = PLAN_FORMAT,
    ) -> tuple[StoredRecord, ...]:
        wanted = {
            "model_name": model_name,
            "architecture": architecture,
            "weights": weights,
            "device": device,
            "hardware": hardware,
            "runtime": runtime,
            "workload": workload,
            "max_peak_vram_bytes": max_peak_vram_bytes,
            "max_format": max_format,
        }
        return tuple(self._paged("/candidates", wanted))

    @override
    def record(self, id_prefix: str) -> StoredRecord:
        prefix_range(id_prefix, "record")
        return self._stored(self._get(f"/records/{id_prefix}", check=_check_record))

    @override
    def history(
        self,
        *,
        model_name: str | None = None,
        key_digest: str | None = None,
        study: str | None = None,
        architecture: str | None = None,
        plan_digest: str | None = None,
        limit: int = 200,
    ) -> tuple[StoredRecord, ...]:
        wanted = {
            "model_name": model_name,
            "key_digest": key_digest,
            "study": study,
            "architecture": architecture,
            "plan_digest": plan_digest,
        }
        return tuple(islice(self._paged("/records", wanted), limit))

    @override
    def revoke(self, record_id: str, *, reason: str, now: datetime) -> str:
        return self._changed("POST", record_id, "/revoke", json={"reason": reason})

    @override
    def revoked_reason(self, record_id: str) -> str | None:
        return self.record(record_id).revoked_reason

    @override
    def rollback(self, record_id: str, *, now: datetime) -> StoredRecord:
        return self.record(self._changed("POST", record_id, "/rollback", once=True))

    @override
    def pin(self, record_id: str, *, now: datetime) -> str:
        return self._changed("PUT", record_id, "/pin")

    @override
    def unpin(self, record_id: str) -> str:
        return self._changed("DELETE", record_id, "/pin", once=True)

    @override
    def note_fetch(self, record_id: str, now: datetime) -> None:
        try:
            self._service.send("POST", f"{API}/fetches/{record_id}", once=True)
        except RegistryError as error:
            logger.info("fetch of %s not counted: %s", record_id, error.message)

    @override
    def keep_artifact(self, staged: Staged) -> None:
        """In the folder of what was fetched too: whoever publishes it may read it next."""
        with staged:
            staged.place()
        where = f"{API}/artifacts/{staged.sha256}"
        self._service.send("PUT", where, file=staged.final)
        trim(self._artifacts.files(), most_bytes=ARTIFACT_BYTES_KEPT)

    @override
    def artifact_path(self, artifact: ArtifactRef) -> Path:
        if self._artifacts.problem(artifact.sha256, artifact.size_bytes) is not None:
            self._fetch(artifact)
        return self._artifacts.verified(artifact.sha256, artifact.size_bytes)

    @override
    def read_artifact(self, artifact: ArtifactRef) -> bytes:
        self.artifact_path(artifact)
        return self._artifacts.read(artifact.sha256, artifact.size_bytes)

    @override
    def artifact_signatures(
        self, record_ids: Sequence[str]
    ) -> dict[tuple[str, ArtifactRef], Signature | None]:
        for name in record_ids:
            if name not in self._signatures:
                self.record(name)
        return {
            (name, artifact): signature
            for name in record_ids
            for artifact, signature in self._signatures[name].items()
        }

    @override
    def trusted_artifact(
        self, stored: StoredRecord, artifact: ArtifactRef, keys: SigningKeys
    ) -> bytes:
        name = stored.record.id
        known = self.artifact_signatures([name])
        if (name, artifact) not in known:
            raise UntrustedArtifact(
                f"{artifact.kind} {short(artifact.sha256)} is not kept for record {short(name)}"
            )
        statement = ArtifactStatement.of(artifact, stored.record)
        keys.verify(statement, known[name, artifact])
        return self.read_artifact(artifact)

    @override
    def put_inventory(self, key: str, inventory: ModelInventory, now: datetime) -> None:
        self._service.send(
            "PUT",
            f"{API}/inventories",
            params={"key": key},
            json=inventory.model_dump(mode="json"),
        )

    @override
    def inventory(self, key: str) -> ModelInventory | None:
        from registry.inventory import ModelInventory

        try:
            answer = self._get("/inventories", {"key": key})
        except RecordNotFound:
            return None
        try:
            return ModelInventory.model_validate(answer)
        except ValidationError as error:
            logger.warning("inventory %s cannot be read by this release: %s", key, error)
            return None

    def _get(
        self,
        path: str,
        wanted: Mapping[str, str | int | None] | None = None,
        check: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        given = {name: value for name, value in (wanted or {}).items() if value is not None}
        parameters: Parameters = given
        return self._service.get(API + path, parameters, check)

    def _changed(self, method: str, record_id: str, what: str, **content: Any) -> str:
        """The id of the record that the service names."""
        prefix_range(record_id, "record")
        answer = self._service.send(method, f"{API}/records/{record_id}{what}", **content)
        ids = answer.get("ids") if isinstance(answer, Mapping) else None
        if not ids or not isinstance(ids, list):
            raise RegistryCorrupt(f"registry {self.name} does not say which record it changed")
        return str(ids[0])

    def _paged(self, path: str, wanted: Mapping[str, str | int | None]) -> Iterator[StoredRecord]:
        """What this release can read and prove; each other one is left out with a warning."""
        after: str | None = None
        while True:
            page = self._get(path, {**wanted, "limit": PAGE_LIMIT, "after": after}, _check_page)
            for answer in page["records"]:
                try:
                    yield self._stored(answer)
                except (RegistryCorrupt, RegistryTooNew) as error:
                    logger.warning("%s; left out", error.message)
            after = page.get("after")
            if after is None:
                return

    def _stored(self, answer: Any) -> StoredRecord:
        stored = stored_of(answer)
        name = stored.record.id
        self._signatures[name] = signatures_of(answer, name)
        return stored

    def _fetch(self, artifact: ArtifactRef) -> None:
        """Raises RecordNotFound, RegistryCorrupt where other bytes come."""
        where = f"{API}/artifacts/{artifact.sha256}"
        with (
            self._service.answer("GET", where) as answer,
            self._artifacts.incoming() as incoming,
        ):
            for piece in answer.iter_bytes():
                incoming.write(piece)
                if incoming.size_bytes > artifact.size_bytes:
                    break
            staged = incoming.staged()
        with staged:
            if (staged.sha256, staged.size_bytes) != (artifact.sha256, artifact.size_bytes):
                raise RegistryCorrupt(f"what came as artifact {artifact.sha256} is not its bytes")
            staged.place()
        trim(self._artifacts.files(), most_bytes=ARTIFACT_BYTES_KEPT)


def open_http(url: str, opening: Opening) -> HttpRegistry:
    """Asks nothing yet. Raises InvalidInput for a token that would pass in the clear."""
    folder = opening.cache_dir / short(digest(url))
    token = opening.token_of(url)
    withholds = token is None and opening.token is not None
    service = HttpService(url, token, AnswerCache(folder), withholds=withholds)
    remove_older(ArtifactFolder(folder / "artifacts").temporaries(), datetime.now(UTC) - ABANDONED)
    return HttpRegistry(service, folder)


def _check_page(answer: Any) -> None:
    """Raises RegistryCorrupt unless it is a `RecordPage`, whatever its records are."""
    records = answer.get("records") if isinstance(answer, Mapping) else None
    if not isinstance(records, list) or not isinstance(answer.get("after"), str | None):
        raise RegistryCorrupt("what came from the registry is no page of records")


def _check_record(answer: Any) -> None:
    """Raises RegistryCorrupt unless it looks like a `RecordAnswer`."""
    if not isinstance(answer, Mapping) or "record" not in answer:
        raise RegistryCorrupt("what came from the registry is no record")


def _one(answer: Any, read: Callable[[Any], Value]) -> Value:
    try:
        return read(answer)
    except ValidationError as error:
        raise RegistryTooNew(
            f"what came cannot be read by this release ({error.error_count()} fields differ)",
            hint="Upgrade this installation.",
        ) from error


def _all(answer: Any, read: Callable[[Any], Value]) -> tuple[Value, ...]:
    """What this release can read; the rest is left out with a warning."""
    if not isinstance(answer, list):
        raise RegistryCorrupt("what came from the registry is no list")
    found = []
    for item in answer:
        try:
            found.append(_one(item, read))
        except RegistryTooNew as error:
            logger.warning("%s; left out", error.message)
    return tuple(found)
