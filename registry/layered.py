"""A registry of one's own over one that is only read: the company's, or one shipped with an image.

Everything is written to the own one, and it decides about every key that it has a record of. What
it does not know comes from the base.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from registry.artifacts import ArtifactFolder
from registry.database import Database
from registry.digest import short
from registry.errors import (
    AmbiguousId,
    RecordNotFound,
    RegistryCorrupt,
    RegistryError,
    RegistryTooNew,
    TunerError,
    UntrustedArtifact,
)
from registry.record import ArtifactRef, Trial
from registry.records import StoredRecord
from registry.rows import only_match
from registry.signing import Signature, SigningKeys
from registry.store import Registry
from registry.studies import StudyRow

if TYPE_CHECKING:
    from registry.inventory import ModelInventory
    from registry.timing import TimingKey
    from registry.timings import StoredTiming
    from registry.verification import Verification

Value = TypeVar("Value")
logger = logging.getLogger(__name__)


class LayeredRegistry(Registry):
    """As `Registry`. A base that cannot be read is told in `notes`, and its records are missing."""

    def __init__(self, database: Database, artifacts: ArtifactFolder, base: Registry) -> None:
        super().__init__(database, artifacts)
        self._own, self._base = Registry(database, artifacts), base
        self._problems: dict[str, None] = {}

    @property
    @override
    def notes(self) -> tuple[str, ...]:
        return (*self._problems, *self._base.notes)

    @override
    def version(self) -> Hashable | None:
        own, base = self._own.version(), self._base.version()
        return None if own is None or base is None else (own, base)

    @override
    def candidates(self, **wanted: Any) -> tuple[StoredRecord, ...]:
        own = self._own.candidates(**wanted)
        return own + self._unknown(self._of_base(lambda: self._base.candidates(**wanted)) or ())

    @override
    def history(self, *, limit: int = 200, **wanted: Any) -> tuple[StoredRecord, ...]:
        own = self._own.history(limit=limit, **wanted)
        base = self._of_base(lambda: self._base.history(limit=limit, **wanted))
        both = own + self._unknown(base or ())
        return tuple(sorted(both, key=lambda item: item.published_at, reverse=True)[:limit])

    @override
    def record(self, id_prefix: str) -> StoredRecord:
        return self._named(
            id_prefix, lambda of: of.record(id_prefix), lambda found: found.record.id, "record"
        )

    @override
    def revoked_reason(self, record_id: str) -> str | None:
        own, base = self._own, self._base
        return _first(lambda: own.revoked_reason(record_id), lambda: base.revoked_reason(record_id))

    @override
    def studies(self, *, model_name: str | None = None, limit: int = 50) -> tuple[StudyRow, ...]:
        own = self._own.studies(model_name=model_name, limit=limit)
        base = self._of_base(lambda: self._base.studies(model_name=model_name, limit=limit))
        known = {study.id for study in own}
        both = (*own, *(study for study in base or () if study.id not in known))
        return tuple(sorted(both, key=lambda study: study.started_at, reverse=True)[:limit])

    @override
    def study(self, id_prefix: str) -> StudyRow:
        """Where the base cannot tell, as where it has none: most studies are one's own."""

        def of(registry: Registry) -> StudyRow:
            if registry is self._own:
                return registry.study(id_prefix)
            found = self._of_base(lambda: _if_there(lambda: registry.study(id_prefix)))
            if found is None:
                raise RecordNotFound(f"there is no study {id_prefix}")
            return found

        return self._named(id_prefix, of, lambda found: found.id, "study")

    @override
    def trials(self, study_id: str) -> tuple[Trial, ...]:
        own = self._own.trials(study_id)
        return own or self._of_base(lambda: self._base.trials(study_id)) or ()

    @override
    def trials_of_plan(
        self, plan_digest: str, *, limit: int = 20
    ) -> tuple[tuple[StudyRow, Trial], ...]:
        own = self._own.trials_of_plan(plan_digest, limit=limit)
        base = self._of_base(lambda: self._base.trials_of_plan(plan_digest, limit=limit))
        return (own + (base or ()))[:limit]

    @override
    def revoke(self, record_id: str, *, reason: str, now: datetime) -> str:
        """Here: of the base nothing is changed, and its record is not seen any more. Of the own
        one, what cannot be read can be revoked too."""
        try:
            found = self.record(record_id)
        except (RegistryCorrupt, RegistryTooNew) as unreadable:
            try:
                return self._own.revoke(record_id, reason=reason, now=now)
            except RecordNotFound:
                raise unreadable from None
        return self._own.revoke_foreign(found, reason=reason, now=now)

    @override
    def pin(self, record_id: str, *, now: datetime) -> str:
        """Here: the base's record is taken over for it."""
        return self._own.pin(self._taken_over(record_id, now), now=now)

    @override
    def note_verification(self, found: Verification) -> None:
        """Here: the base's record is taken over for it. Where it cannot be, that is told in
        `notes`: the run it came of is kept as a study all the same."""
        try:
            self._taken_over(found.record, found.verified_at)
            self._own.note_verification(found)
        except (RegistryError, UntrustedArtifact) as error:
            self._tell(f"what came of running record {short(found.record)} is not kept", error)

    @override
    def inventory(self, key: str) -> ModelInventory | None:
        return self._own.inventory(key) or self._of_base(lambda: self._base.inventory(key))

    @override
    def timings(self, keys: Iterable[TimingKey]) -> dict[TimingKey, StoredTiming]:
        """A service tells no timings: those of a base that is served are missing."""
        wanted, own = tuple(keys), self._own
        if self._base.is_served:
            return own.timings(wanted)
        return {**(self._of_base(lambda: self._base.timings(wanted)) or {}), **own.timings(wanted)}

    @override
    def artifact_path(self, artifact: ArtifactRef) -> Path:
        own, base = self._own, self._base
        return _first(lambda: own.artifact_path(artifact), lambda: base.artifact_path(artifact))

    @override
    def read_artifact(self, artifact: ArtifactRef) -> bytes:
        own, base = self._own, self._base
        return _first(lambda: own.read_artifact(artifact), lambda: base.read_artifact(artifact))

    @override
    def artifact_signatures(
        self, record_ids: Sequence[str]
    ) -> dict[tuple[str, ArtifactRef], Signature | None]:
        own = self._own.artifact_signatures(record_ids)
        known = {name for name, _ in own}
        others = [name for name in record_ids if name not in known]
        base = self._of_base(lambda: self._base.artifact_signatures(others)) if others else {}
        return {**(base or {}), **own}

    @override
    def trusted_artifact(
        self, stored: StoredRecord, artifact: ArtifactRef, keys: SigningKeys
    ) -> bytes:
        if self.known_keys([stored.record.key.digest]):
            return self._own.trusted_artifact(stored, artifact, keys)
        return self._base.trusted_artifact(stored, artifact, keys)

    def _unknown(self, found: tuple[StoredRecord, ...]) -> tuple[StoredRecord, ...]:
        known = self.known_keys([item.record.key.digest for item in found])
        return tuple(item for item in found if item.record.key.digest not in known)

    def _taken_over(self, record_id: str, now: datetime) -> str:
        """The record's id, once it is in the own registry. Raises RecordNotFound, and what keeps
        its artifacts from being copied."""
        from registry.transfer import parcels, take

        found = self.record(record_id)
        if not self.known_keys([found.record.key.digest]):
            for parcel in parcels(self._base, record_ids=[found.record.id]):
                take(self._base, self._own, parcel, now)
        return found.record.id

    def _named(
        self,
        prefix: str,
        read: Callable[[Registry], Value],
        name: Callable[[Value], str],
        what: str,
    ) -> Value:
        """The one value of both whose id begins with `prefix`. Raises RecordNotFound, and
        AmbiguousId where each has another."""
        own = _first(lambda: read(self._own), lambda: read(self._base))
        if name(own) != prefix:
            other = self._of_base(lambda: _if_there(lambda: read(self._base)))
            only_match(
                sorted({name(item) for item in (own, other) if item is not None}), prefix, what
            )
        return own

    def _of_base(self, read: Callable[[], Value]) -> Value | None:
        """None where the base cannot tell, for whatever reason it gives."""
        try:
            return read()
        except AmbiguousId:
            raise
        except TunerError as error:
            self._tell("base registry", error)
            return None

    def _tell(self, what: str, error: TunerError) -> None:
        logger.warning("%s: %s", what, error.message)
        self._problems[f"{what}: {error.message}"] = None


def _first(own: Callable[[], Value], base: Callable[[], Value]) -> Value:
    """What the own one does not have comes from the base. Where neither has it, the own one's
    error is told."""
    try:
        return own()
    except AmbiguousId:
        raise
    except RecordNotFound as missing:
        try:
            return base()
        except AmbiguousId:
            raise
        except RecordNotFound:
            raise missing from None


def _if_there(read: Callable[[], Value]) -> Value | None:
    """None where it is not there; several are an error."""
    try:
        return read()
    except AmbiguousId:
        raise
    except RecordNotFound:
        return None
