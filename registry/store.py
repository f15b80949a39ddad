"""The registry as its users see it: studies, trials, records and artifacts in one place."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select

from registry import (
    artifact_rows,
    publishing,
    records,
    rows,
    studies,
    verifications,
    versions,
)
from registry.artifacts import ArtifactFolder, Incoming, Staged
from registry.database import Database
from registry.environment import Environment
from registry.errors import InvalidInput, RecordNotFound, RegistryError
from registry.plan import PLAN_FORMAT
from registry.record import ArtifactKind, ArtifactRef, Trial, TuningRecord
from registry.records import Page, StoredRecord, Wanted
from registry.signing import (
    ArtifactStatement,
    GivenSignatures,
    Signature,
    Signer,
    SigningKeys,
)
from registry.sqlite_database import SqliteDatabase
from registry.studies import StudyBody, StudyEnd, StudyEndStatus, StudyRow
from registry.workload import ModelRef, Workload

if TYPE_CHECKING:
    from registry.environment import Hardware, Runtime
    from registry.inventory import ModelInventory
    from registry.job_queue import JobQueue
    from registry.leases import Lease
    from registry.maintenance import Collected
    from registry.quotas import Quota, Trimmed
    from registry.timing import Timing, TimingKey
    from registry.timings import Kept, Places, StoredTiming
    from registry.verification import Verification

FETCH_WAIT_S = 0.2
"""How long an answer is held up to count it."""

GARBAGE_GRACE = timedelta(days=1)
"""Longer than any run takes between putting an artifact and publishing the record that names it."""

RecordPage = tuple[tuple[StoredRecord, ...], str | None]

logger = logging.getLogger(__name__)


class Registry:
    """Every method is one transaction. All raise the errors of `registry.errors.RegistryError`;
    a method that writes raises RegistryReadOnly, RegistryFull or RegistryTooNew and then has
    changed nothing. Times are given by the caller and must have a zone."""

    def __init__(self, database: Database, artifacts: ArtifactFolder) -> None:
        self._database = database
        self._artifacts = artifacts

    @property
    def name(self) -> str:
        """What messages call it; holds no password."""
        return self._database.name

    @property
    def is_served(self) -> bool:
        """Whether it lies behind a service, elsewhere."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of the answers given so far."""
        return ()

    def version(self) -> Hashable | None:
        """Equal to the one before only where nothing was written in between; None: not known."""
        return self._database.version()

    @property
    def path(self) -> Path:
        """The database file. Raises InvalidInput where it is no file."""
        if not isinstance(self._database, SqliteDatabase):
            raise InvalidInput(f"registry {self.name} is not a file")
        return self._database.path

    @property
    def jobs(self) -> JobQueue:
        """Tuning jobs, and who works at them."""
        from registry.job_queue import JobQueue

        return JobQueue(self._database)

    def begin_study(
        self,
        identity: str,
        *,
        model: ModelRef,
        workload: Workload,
        environment: Environment,
        request: Mapping[str, Any],
        now: datetime,
    ) -> StudyRow:
        """Continue the unfinished study (running or interrupted) of this identity, which keeps what
        it was asked at its start; else start one."""
        body = StudyBody(
            identity=identity,
            model=model,
            workload=workload,
            environment=environment,
            request=request,
        )
        with self._database.write() as connection:
            return studies.begin(connection, body, now)

    def require_writable(self) -> None:
        """Before long work whose result shall be kept here. Raises what a write would meet at
        once: RegistryReadOnly, RegistryTooNew, or RegistryError when it stays busy."""
        with self._database.write():
            return

    def studies(self, *, model_name: str | None = None, limit: int = 50) -> tuple[StudyRow, ...]:
        """Newest first."""
        with self._database.read() as connection:
            return studies.newest(connection, model_name, limit)

    def study(self, id_prefix: str) -> StudyRow:
        """Raises RecordNotFound; an ambiguous prefix says so."""
        with self._database.read() as connection:
            return studies.find(connection, id_prefix)

    def add_trial(self, study_id: str, trial: Trial) -> int:
        """The trial's number. Raises RecordNotFound."""
        with self._database.write() as connection:
            return studies.add_trial(connection, study_id, trial)

    def trials(self, study_id: str) -> tuple[Trial, ...]:
        """In the order they were added."""
        with self._database.read() as connection:
            return studies.trials(connection, study_id)

    def trials_of_plan(
        self, plan_digest: str, *, limit: int = 20
    ) -> tuple[tuple[StudyRow, Trial], ...]:
        """Trials of one plan in whatever study, newest first, each with its study."""
        with self._database.read() as connection:
            found = studies.trials_of_plan(connection, plan_digest, limit)
            rows = {name: studies.get(connection, name) for name in dict(found)}
        return tuple((rows[name], trial) for name, trial in found)

    def finish_study(
        self, study_id: str, *, status: StudyEndStatus, summary: Mapping[str, Any], now: datetime
    ) -> None:
        """Raises RecordNotFound."""
        with self._database.write() as connection:
            studies.end(connection, StudyEnd(study_id, status, summary), now)

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
        """All of them or none; the ids of those that are there then, in the same order.

        The current record of the same key is superseded. With `keys` the records and their
        artifacts are signed. With `end` the study ends in the same transaction. With `lease`,
        that of the job this is done for, nothing happens unless it still holds. Publishing a
        record again changes nothing. `bodies` are the records' bytes as their maker wrote them,
        where that was elsewhere: then one that is older than another of its key is not taken, and
        one from the future is refused. Raises InvalidInput where a record contradicts its own key,
        RegistryConflict where an artifact is missing, LeaseLost.
        """
        prepared = [
            publishing.prepare(record, keys, None if bodies is None else bodies[number])
            for number, record in enumerate(new_records)
        ]
        with self._database.write() as connection:
            if lease is not None:
                from registry import leases

                leases.require(connection, lease)
            published = publishing.publish(connection, prepared, now)
            if end is not None:
                studies.end(connection, end, now)
        return published

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
        """Current records for which every given value is equal, newest publication first.

        `device` is "cuda" or "cpu"; `hardware`, `runtime` and `workload` are digests. Records that
        need a newer reader are skipped; damaged ones too, with a warning, and `check` names them.
        """
        wanted = Wanted(
            model_name=model_name,
            architecture=architecture,
            weights=weights,
            device=device,
            hardware=hardware,
            runtime=runtime,
            workload=workload,
            max_peak_vram_bytes=max_peak_vram_bytes,
            max_format=max_format,
        )
        return self._readable(records.candidates_query(wanted))

    def candidate_page(self, wanted: Wanted, page: Page) -> RecordPage:
        """A part of `candidates`, and the id behind which the next begins; None: there is none."""
        return self._page(records.candidates_query(wanted), page)

    def history_page(self, wanted: Mapping[str, str | None], page: Page) -> RecordPage:
        """A part of `history`, whose names of columns `wanted` has."""
        return self._page(records.history_query(wanted), page)

    def record(self, id_prefix: str) -> StoredRecord:
        """Raises RecordNotFound (an ambiguous prefix says so), RegistryCorrupt, RegistryTooNew."""
        with self._database.read() as connection:
            return records.get(connection, records.find_id(connection, id_prefix))

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
        """Records of every status for which every given value is equal, newest publication
        first."""
        wanted = {
            "model_name": model_name,
            "key_digest": key_digest,
            "study": study,
            "architecture": architecture,
            "plan_digest": plan_digest,
        }
        return self._readable(records.history_query(wanted).limit(limit))

    def known_keys(self, digests: Sequence[str]) -> set[str]:
        """Digests of keys of which there is a record here, of whatever status."""
        with self._database.read() as connection:
            return records.known_keys(connection, digests)

    def revoke(self, record_id: str, *, reason: str, now: datetime) -> str:
        """Take a record out of service for good; nothing takes its place. The id."""
        with self._database.write() as connection:
            return versions.revoke(connection, record_id, reason, now)

    def revoke_foreign(self, stored: StoredRecord, *, reason: str, now: datetime) -> str:
        """As `revoke`, of a record of another registry: its artifacts are not needed for it."""
        record, signature = stored.record, stored.signature
        given = (
            {} if signature is None or stored.statement is None else {stored.statement: signature}
        )
        prepared = publishing.prepare(record, GivenSignatures(given), stored.body)
        with self._database.write() as connection:
            publishing.keep_unserved(connection, prepared, now)
            return versions.revoke(connection, record.id, reason, now)

    def revoked_reason(self, record_id: str) -> str | None:
        """Why a record was taken out of service, damaged or not; None where it was not. Raises
        RecordNotFound."""
        with self._database.read() as connection:
            return versions.revoked_reason(connection, record_id)

    def rollback(self, record_id: str, *, now: datetime) -> StoredRecord:
        """Revoke a record and put the version before it into service: see `registry.versions`."""
        with self._database.write() as connection:
            return versions.rollback(connection, record_id, now)

    def pin(self, record_id: str, *, now: datetime) -> str:
        """Prefer a record in service to all others for its own question: see `registry.pins`. The
        id."""
        from registry import pins

        with self._database.write() as connection:
            return pins.pin(connection, record_id, now)

    def unpin(self, record_id: str) -> str:
        """Undo `pin`. The id."""
        from registry import pins

        with self._database.write() as connection:
            return pins.unpin(connection, record_id)

    def note_fetch(self, record_id: str, now: datetime) -> None:
        """Count an answer, best effort: a registry that cannot be written, or is busy, still
        answers."""
        try:
            with self._database.write(wait_s=FETCH_WAIT_S) as connection:
                records.note_fetch(connection, record_id, now)
        except RegistryError as error:
            logger.info("fetch of %s not counted: %s", record_id, error.message)

    def note_fetches(self, counts: Mapping[str, int], now: datetime) -> None:
        """As `note_fetch`, of several answers. A record that is not there is left out."""
        try:
            with self._database.write(wait_s=FETCH_WAIT_S) as connection:
                for record_id, times in counts.items():
                    with suppress(RecordNotFound):
                        records.note_fetch(connection, record_id, now, times)
        except RegistryError as error:
            logger.info("%d fetches not counted: %s", sum(counts.values()), error.message)

    def note_verification(self, found: Verification) -> None:
        """What came of running a record's plan again: it stands in the record's place of the last
        one. Raises RecordNotFound."""
        with self._database.write() as connection:
            verifications.note(connection, found)

    def put_artifact(self, kind: ArtifactKind, source: Path | bytes) -> ArtifactRef:
        """Keep a file's bytes; the same bytes are kept once. The row follows the synced file."""
        staged = self._artifacts.stage(source)
        self.keep_artifact(staged)
        return ArtifactRef(kind=kind, sha256=staged.sha256, size_bytes=staged.size_bytes)

    def incoming_artifact(self) -> Incoming:
        """For bytes that come in pieces; what is staged of them is for `keep_artifact`."""
        return self._artifacts.incoming()

    def keep_artifact(self, staged: Staged) -> None:
        """Keep staged bytes, or remove them where that fails."""
        with staged, self._database.write() as connection:
            staged.place()
            artifact_rows.note(connection, staged)

    def artifact_path(self, artifact: ArtifactRef) -> Path:
        """The file, its digest checked now. It proves no maker: see `trusted_artifact`.

        Raises RecordNotFound where it was never put, RegistryCorrupt where bytes are lost or
        differ.
        """
        with self._database.read() as connection:
            artifact_rows.check_known(connection, artifact)
        return self._artifacts.verified(artifact.sha256, artifact.size_bytes)

    def read_artifact(self, artifact: ArtifactRef) -> bytes:
        """The very bytes that were checked. Raises as `artifact_path` does."""
        with self._database.read() as connection:
            artifact_rows.check_known(connection, artifact)
        return self._artifacts.read(artifact.sha256, artifact.size_bytes)

    def find_artifact(self, sha256: str) -> tuple[Path, int]:
        """Where the bytes of this digest lie and how many they are, unproved: for those who hand
        them on to somebody who proves them. Raises RecordNotFound, InvalidInput."""
        path = self._artifacts.path(sha256)
        with self._database.read() as connection:
            return path, artifact_rows.size_bytes(connection, sha256)

    def artifact_signatures(
        self, record_ids: Sequence[str]
    ) -> dict[tuple[str, ArtifactRef], Signature | None]:
        """Of every artifact of these records, by the record's id and the artifact."""
        with self._database.read() as connection:
            return artifact_rows.signatures(connection, record_ids)

    def trusted_artifact(
        self, stored: StoredRecord, artifact: ArtifactRef, keys: SigningKeys
    ) -> bytes:
        """A record's artifact, after a trusted key's signature over exactly these bytes for exactly
        this record's key was verified. Raises UntrustedArtifact and as `read_artifact` does."""
        with self._database.read() as connection:
            signature = artifact_rows.signature(connection, stored.record.id, artifact)
        keys.verify(ArtifactStatement.of(artifact, stored.record), signature)
        return self.read_artifact(artifact)

    def put_inventory(self, key: str, inventory: ModelInventory, now: datetime) -> None:
        """Replace the inventory of this key."""
        from registry import inventories

        with self._database.write() as connection:
            inventories.put(connection, key, inventory, now)

    def inventory(self, key: str) -> ModelInventory | None:
        """None where there is none that this release can read."""
        from registry import inventories

        with self._database.read() as connection:
            return inventories.get(connection, key)

    def put_timings(
        self, timings: Iterable[Timing], *, now: datetime, environment: Environment | None = None
    ) -> Kept:
        """Keep timings taken just now, all in one transaction; see `registry.timings` for what
        replaces what. `environment` says what the digests in their keys stand for.

        Raises InvalidInput for a timing that was not taken in `environment`.
        """
        from registry.timings import stored_now

        found = stored_now(timings, environment, now)
        parts = () if environment is None else (environment.hardware, environment.runtime)
        return self.merge_timings(found, parts)

    def merge_timings(
        self, found: Sequence[StoredTiming], places: Iterable[Hardware | Runtime] = ()
    ) -> Kept:
        """Keep timings of another registry with the times they were taken at: all or none."""
        from registry import timings

        with self._database.write() as connection:
            return timings.put(connection, found, places)

    def timings(self, keys: Iterable[TimingKey]) -> dict[TimingKey, StoredTiming]:
        """Those of `keys` that are there and whole."""
        from registry import timings

        with self._database.read() as connection:
            return {item.timing.key: item for item in timings.get(connection, keys)}

    def all_timings(
        self, *, hardware: str | None = None, runtime: str | None = None
    ) -> tuple[StoredTiming, ...]:
        """Of one machine (`hardware`, `runtime`: digests) or of all, in a fixed order; a damaged
        one is left out with a warning, and `check` names it."""
        from registry import timings

        with self._database.read() as connection:
            found = connection.execute(timings.query(hardware, runtime))
            return rows.readable(found, timings.stored_timing)

    def timing_places(self) -> Places:
        """What the digests in timings stand for, where it is known."""
        from registry import timings

        with self._database.read() as connection:
            return timings.places(connection)

    def check(self) -> list[str]:
        """Everything damaged, one line each: file, rows, artifacts. Empty when all is well."""
        from registry import maintenance

        return maintenance.check(self._database, self._artifacts)

    def collect_garbage(self, *, now: datetime, grace: timedelta = GARBAGE_GRACE) -> Collected:
        """Remove artifacts that nothing names and that were put before `now - grace`."""
        from registry import maintenance

        return maintenance.collect_garbage(self._database, self._artifacts, now=now, grace=grace)

    def trim(self, quota: Quota) -> Trimmed:
        """Let go of artifacts and trials beyond a quota; see `registry.quotas` for what stays."""
        from registry import quotas

        return quotas.trim(self._database, quota)

    def _readable(self, query: Select[Any]) -> tuple[StoredRecord, ...]:
        with self._database.read() as connection:
            return rows.readable(connection.execute(query), records.stored)

    def _page(self, query: Select[Any], page: Page) -> RecordPage:
        with self._database.read() as connection:
            found = connection.execute(records.on_page(query, page)).all()
        more = found[-1].id if len(found) == page.limit else None
        return rows.readable(found, records.stored), more
