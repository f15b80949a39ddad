"""What every registry backend must do. A backend's test module subclasses this and gives
`registry`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.errors import (
    InvalidInput,
    RecordNotFound,
    RegistryConflict,
    RegistryError,
    UntrustedArtifact,
)
from registry.record import ArtifactRef
from registry.signing import ArtifactStatement, SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd, StudyEndStatus, StudyRow
from registry.timing import TimingOutcome
from tests.registry import samples
from tests.registry.samples import NOW, later


def begin(registry: Registry, identity: str = "identity", minutes: float = 0) -> StudyRow:
    return registry.begin_study(
        identity,
        model=samples.MODEL,
        workload=samples.WORKLOAD,
        environment=samples.ENVIRONMENT,
        request={"vram": "2GB", "nested": {"seeds": [1, 2]}},
        now=later(minutes),
    )


def pinned(registry: Registry) -> set[str]:
    return {found.record.id for found in registry.candidates() if found.pinned}


class RecordConformance:
    """Records and artifacts, wherever the registry is. Each test begins with an empty one."""

    # Publishing and finding

    def test_a_published_record_is_a_candidate(self, registry: Registry) -> None:
        record = samples.record()
        assert registry.publish([record], now=later(1)) == (record.id,)
        (found,) = registry.candidates(model_name="tiny-flux")
        assert found.record == record
        assert (found.status, found.fetches, found.published_at) == ("current", 0, later(1))
        assert registry.record(record.id[:12]) == found

    @pytest.mark.parametrize(
        ("wanted", "count"),
        [
            ({}, 3),
            ({"model_name": "sdxl"}, 1),
            ({"architecture": "a" * 64}, 2),
            ({"architecture": "a" * 64, "weights": "d" * 64}, 1),
            ({"device": "cpu"}, 3),
            ({"device": "cuda"}, 0),
            ({"hardware": samples.HARDWARE.digest}, 3),
            ({"workload": "nothing"}, 0),
            ({"runtime": samples.RUNTIME.digest}, 3),
            ({"max_peak_vram_bytes": 1000}, 1),
            ({"max_format": 0}, 0),
        ],
    )
    def test_candidates_filter(
        self, registry: Registry, wanted: dict[str, object], count: int
    ) -> None:
        records = [
            samples.record(),
            samples.record(weights="d" * 64, peak_vram_bytes=1000),
            samples.record(name="sdxl", architecture="c" * 64),
        ]
        registry.publish(records, now=NOW)
        assert len(registry.candidates(**wanted)) == count  # type: ignore[arg-type]

    def test_a_newer_record_of_a_key_supersedes(self, registry: Registry) -> None:
        old, new, other = samples.record(), samples.record(minutes=5), samples.record(threads=2)
        registry.publish([old, other], now=NOW)
        registry.publish([new], now=later(5))
        assert {found.record.id for found in registry.candidates()} == {new.id, other.id}
        superseded = registry.record(old.id)
        assert (superseded.status, superseded.superseded_by) == ("superseded", new.id)
        history = registry.history(key_digest=old.key.digest)
        assert [entry.record.id for entry in history] == [new.id, old.id]
        assert len(registry.history(model_name="tiny-flux")) == 3
        later_study = samples.record(minutes=6, study="1" * 32)
        registry.publish([later_study], now=later(6))
        assert [one.record.id for one in registry.history(study="1" * 32)] == [later_study.id]

    def test_publishing_again_changes_nothing(self, registry: Registry) -> None:
        old, new = samples.record(), samples.record(minutes=5)
        registry.publish([old], now=NOW)
        registry.publish([new], now=later(5))
        before = registry.history()
        assert registry.publish([old], now=later(9)) == (old.id,)
        assert registry.history() == before

    def test_all_or_none_are_published(self, registry: Registry) -> None:
        lost = ArtifactRef(kind="compile_cache", sha256="c" * 64, size_bytes=3)
        records = [samples.record(), samples.record(threads=2, artifacts=(lost,))]
        with pytest.raises(RegistryConflict, match="nothing was published"):
            registry.publish(records, now=NOW)
        assert registry.history() == ()

    def test_a_record_that_contradicts_its_key_is_refused(self, registry: Registry) -> None:
        record = samples.record()
        wrong = record.model_copy(update={"plan": samples.plan(threads=7)})
        with pytest.raises(InvalidInput, match="names plan"):
            registry.publish([wrong], now=NOW)

    def test_what_no_database_holds_is_refused(self, registry: Registry) -> None:
        with pytest.raises(InvalidInput, match="too large to be kept"):
            registry.publish([samples.record(budget_bytes=2**63)], now=NOW)
        with pytest.raises(InvalidInput, match="NUL character"):
            registry.publish([samples.record(name="tiny\0flux")], now=NOW)
        empty = samples.measurement().model_copy(update={"shapes": ()})
        with pytest.raises(InvalidInput, match="no mean"):
            registry.publish([samples.record().model_copy(update={"measurement": empty})], now=NOW)

    def test_two_records_of_one_key_at_once_are_refused(self, registry: Registry) -> None:
        with pytest.raises(InvalidInput, match="same key"):
            registry.publish([samples.record(), samples.record(minutes=1)], now=NOW)

    def test_a_time_without_a_zone_is_refused(self, registry: Registry) -> None:
        with pytest.raises(InvalidInput, match="no time zone"):
            registry.publish([samples.record()], now=datetime(2026, 1, 1))  # noqa: DTZ001

    def test_ids_by_prefix(self, registry: Registry) -> None:
        records = [samples.record(threads=number + 1) for number in range(5)]
        registry.publish(records, now=NOW)
        assert registry.record(records[3].id).record == records[3]
        for wrong in ("", "abc", "%%%%%%", "ABCDEF12", "0" * 64):
            with pytest.raises(RecordNotFound):
                registry.record(wrong)

    # Taking out of service

    def test_a_revoked_record_is_no_candidate(self, registry: Registry) -> None:
        record = samples.record()
        registry.publish([record], now=NOW)
        assert registry.revoke(record.id[:12], reason="black pictures", now=later(1)) == record.id
        registry.revoke(record.id, reason="another", now=later(2))
        assert registry.candidates() == ()
        revoked = registry.record(record.id)
        assert (revoked.status, revoked.revoked_reason) == ("revoked", "black pictures")
        with pytest.raises(RecordNotFound):
            registry.revoke("f" * 64, reason="unknown", now=NOW)

    def test_a_pin_stays_with_its_key(self, registry: Registry) -> None:
        old, other = samples.record(), samples.record(threads=2)
        registry.publish([old, other], now=NOW)
        assert registry.pin(old.id[:12], now=NOW) == old.id
        registry.pin(old.id, now=later(1))
        assert pinned(registry) == {old.id}
        new = samples.record(minutes=5)
        registry.publish([new], now=later(5))
        assert pinned(registry) == {new.id}
        with pytest.raises(InvalidInput, match="is superseded"):
            registry.pin(old.id, now=later(6))
        assert registry.unpin(new.id) == new.id
        assert pinned(registry) == set()
        with pytest.raises(InvalidInput, match="is not pinned"):
            registry.unpin(new.id)

    def test_rollback_walks_back_through_one_key(self, registry: Registry) -> None:
        versions = [samples.record(minutes=number) for number in range(3)]
        for version in versions:
            registry.publish([version], now=NOW)
        back = registry.rollback(versions[2].id, now=later(9))
        assert (back.record, back.status, back.superseded_by) == (versions[1], "current", None)
        assert "rolled back to" in (registry.record(versions[2].id).revoked_reason or "")
        assert registry.rollback(versions[1].id, now=later(9)).record == versions[0]
        with pytest.raises(RecordNotFound, match="no version before"):
            registry.rollback(versions[0].id, now=later(9))
        assert [found.record for found in registry.candidates()] == [versions[0]]

    def test_rollback_skips_revoked_versions(self, registry: Registry) -> None:
        versions = [samples.record(minutes=number) for number in range(3)]
        for version in versions:
            registry.publish([version], now=NOW)
        registry.revoke(versions[1].id, reason="bad", now=NOW)
        assert registry.rollback(versions[2].id, now=NOW).record == versions[0]

    def test_rollback_after_revoke_restores(self, registry: Registry) -> None:
        old, new = samples.record(), samples.record(minutes=1)
        for version in (old, new):
            registry.publish([version], now=NOW)
        registry.revoke(new.id, reason="bad", now=NOW)
        assert registry.candidates() == ()
        assert registry.rollback(new.id, now=NOW).record == old
        assert registry.record(new.id).revoked_reason == "bad"

    def test_rollback_of_a_superseded_record_is_refused(self, registry: Registry) -> None:
        old, new = samples.record(), samples.record(minutes=1)
        for version in (old, new):
            registry.publish([version], now=NOW)
        with pytest.raises(InvalidInput, match=new.id[:12]):
            registry.rollback(old.id, now=NOW)

    def test_rollback_reaches_the_plan_of_an_older_study(self, registry: Registry) -> None:
        old, new = samples.record(), samples.record(minutes=1, threads=2, torch="2.14.0")
        other_budget = samples.record(minutes=2, threads=3, budget_bytes=samples.GIB)
        for version in (old, other_budget, new):
            registry.publish([version], now=NOW)
        assert registry.rollback(new.id, now=NOW).record == old
        assert {found.record.id for found in registry.candidates()} == {old.id, other_budget.id}
        with pytest.raises(RecordNotFound):
            registry.rollback(other_budget.id, now=NOW)

    def test_rollback_stays_out_of_its_own_publication(self, registry: Registry) -> None:
        registry.publish([samples.record(threads=1), samples.record(threads=2)], now=NOW)
        with pytest.raises(RecordNotFound, match="nothing was changed"):
            registry.rollback(samples.record(threads=2).id, now=NOW)
        assert len(registry.candidates()) == 2

    def test_rollback_answers_with_the_newer_version_of_the_one_before(
        self, registry: Registry
    ) -> None:
        old = samples.record()
        bad, again = samples.record(minutes=1, threads=2), samples.record(minutes=1)
        registry.publish([old], now=NOW)
        registry.publish([bad, again], now=NOW)
        assert registry.rollback(bad.id, now=NOW).record == again
        assert registry.record(old.id).status == "superseded"

    # Counting, inventories

    def test_fetches_are_counted(self, registry: Registry) -> None:
        record = samples.record()
        registry.publish([record], now=NOW)
        for number in range(3):
            registry.note_fetch(record.id, later(number))
        registry.note_fetch("f" * 64, NOW)
        assert registry.record(record.id).fetches == 3

    def test_inventories_are_replaced(self, registry: Registry) -> None:
        assert registry.inventory("key") is None
        registry.put_inventory("key", samples.inventory(), NOW)
        registry.put_inventory("key", samples.inventory(weights="c" * 64), NOW)
        assert registry.inventory("key") == samples.inventory(weights="c" * 64)

    # Artifacts

    def test_artifacts_are_kept_by_content(self, registry: Registry, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"compiled" * 1000)
        first = registry.put_artifact("compile_cache", source)
        second = registry.put_artifact("log", source.read_bytes())
        assert first.sha256 == second.sha256
        assert registry.artifact_path(first).read_bytes() == source.read_bytes()
        assert registry.read_artifact(second) == source.read_bytes()
        with pytest.raises(RecordNotFound):
            registry.artifact_path(ArtifactRef(kind="log", sha256="0" * 64, size_bytes=1))
        with pytest.raises(InvalidInput, match="nowhere"):
            registry.put_artifact("log", tmp_path / "nowhere")

    def test_a_signed_artifact_is_trusted(self, registry: Registry, tmp_path: Path) -> None:
        keys = SigningKeys(tmp_path / "keys")
        artifact = registry.put_artifact("compile_cache", b"compiled")
        record = samples.record(artifacts=(artifact,))
        registry.publish([record], now=NOW, keys=keys)
        (found,) = registry.candidates()
        assert registry.trusted_artifact(found, artifact, keys) == b"compiled"
        with pytest.raises(UntrustedArtifact, match="not trusted here"):
            registry.trusted_artifact(found, artifact, SigningKeys(tmp_path / "strangers"))

    def test_a_record_is_signed(self, registry: Registry, tmp_path: Path) -> None:
        keys = SigningKeys(tmp_path / "keys")
        registry.publish([samples.record()], now=NOW, keys=keys)
        (found,) = registry.candidates()
        assert found.statement is not None
        keys.verify(found.statement, found.signature)
        with pytest.raises(UntrustedArtifact):
            keys.verify(ArtifactStatement.of_record(b"other", found.record), found.signature)

    def test_an_unsigned_artifact_is_not_trusted(self, registry: Registry, tmp_path: Path) -> None:
        artifact = registry.put_artifact("compile_cache", b"compiled")
        registry.publish([samples.record(artifacts=(artifact,))], now=NOW)
        (found,) = registry.candidates()
        with pytest.raises(UntrustedArtifact, match="not signed"):
            registry.trusted_artifact(found, artifact, SigningKeys(tmp_path / "keys"))

    def test_a_record_of_another_time_does_not_carry_the_signature(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        """Whoever writes the registry could make an old one look new."""
        keys = SigningKeys(tmp_path / "keys")
        registry.publish([samples.record()], now=NOW, keys=keys)
        (found,) = registry.candidates()
        assert found.statement is not None
        newer = found.statement.model_copy(update={"made_at": NOW + timedelta(days=1)})
        with pytest.raises(UntrustedArtifact, match="valid signature"):
            keys.verify(newer, found.signature)

    def test_an_artifact_of_another_record_is_not_trusted(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        keys = SigningKeys(tmp_path / "keys")
        artifact = registry.put_artifact("compile_cache", b"compiled")
        records = [samples.record(artifacts=(artifact,)), samples.record(threads=2)]
        registry.publish(records, now=NOW, keys=keys)
        other = registry.record(records[1].id)
        with pytest.raises(UntrustedArtifact, match="is not kept for"):
            registry.trusted_artifact(other, artifact, keys)


class RegistryConformance(RecordConformance):
    """And what a registry in a database does."""

    # Studies and trials

    def test_a_study_keeps_what_it_was_asked(self, registry: Registry) -> None:
        study = begin(registry)
        assert study.status == "running"
        assert study.model == samples.MODEL
        assert study.workload == samples.WORKLOAD
        assert study.environment == samples.ENVIRONMENT
        assert study.started_at == NOW
        assert study.request["nested"] == {"seeds": [1, 2]}
        assert registry.study(study.id[:8]) == study

    def test_an_unfinished_study_is_continued(self, registry: Registry) -> None:
        first = begin(registry)
        assert begin(registry, minutes=5) == first
        registry.finish_study(first.id, status="interrupted", summary={}, now=later(6))
        continued = begin(registry, minutes=7)
        assert (continued.id, continued.status) == (first.id, "running")
        assert continued.finished_at is None

    @pytest.mark.parametrize("status", ["finished", "failed"])
    def test_an_ended_study_is_not_continued(self, registry: Registry, status: str) -> None:
        first = begin(registry)
        registry.finish_study(first.id, status=status, summary={"best": 1.5}, now=later(1))  # type: ignore[arg-type]
        ended = registry.study(first.id)
        assert (ended.status, ended.finished_at) == (status, later(1))
        assert ended.summary == {"best": 1.5}
        assert begin(registry, minutes=2).id != first.id

    def test_a_finished_study_stays_finished(self, registry: Registry) -> None:
        """Another who was at it comes too late with his end."""
        study = begin(registry)
        registry.finish_study(study.id, status="finished", summary={"best": 1.5}, now=later(1))
        late: tuple[StudyEndStatus, ...] = ("interrupted", "failed")
        for status in late:
            registry.finish_study(study.id, status=status, summary={}, now=later(2))
        ended = registry.study(study.id)
        assert (ended.status, ended.summary, ended.finished_at) == (
            "finished",
            {"best": 1.5},
            later(1),
        )

    def test_another_identity_is_another_study(self, registry: Registry) -> None:
        assert begin(registry, "one").id != begin(registry, "two").id

    def test_studies_are_listed_newest_first(self, registry: Registry) -> None:
        ids = [begin(registry, str(number), minutes=number).id for number in range(3)]
        assert [study.id for study in registry.studies(limit=2)] == ids[:0:-1]
        assert registry.studies(model_name="sdxl") == ()

    def test_trials_come_back_in_order(self, registry: Registry) -> None:
        study, other = begin(registry, "one"), begin(registry, "two")
        log = registry.put_artifact("log", b"said the worker")
        tried = [samples.trial(1), samples.trial(2, log=log), samples.trial(1)]
        numbers = [registry.add_trial(study.id, trial) for trial in tried]
        assert numbers == sorted(set(numbers))
        assert registry.trials(study.id) == tuple(tried)
        assert registry.trials(other.id) == ()

    def test_trials_of_a_plan_are_found_in_every_study(self, registry: Registry) -> None:
        study, other = begin(registry, "one"), begin(registry, "two")
        plans = [samples.trial(number) for number in (1, 2)]
        for row, trial in ((study, plans[0]), (study, plans[1]), (other, plans[0])):
            registry.add_trial(row.id, trial)
        digest = plans[0].plan.digest
        assert registry.trials_of_plan(digest) == ((other, plans[0]), (study, plans[0]))
        assert registry.trials_of_plan(digest, limit=1) == ((other, plans[0]),)
        assert registry.trials_of_plan("f" * 64) == ()

    def test_a_trial_needs_its_study_and_its_log(self, registry: Registry) -> None:
        with pytest.raises(RecordNotFound, match="no study"):
            registry.add_trial("f" * 32, samples.trial())
        lost = ArtifactRef(kind="log", sha256="c" * 64, size_bytes=3)
        with pytest.raises(RegistryError, match="cccc"):
            registry.add_trial(begin(registry).id, samples.trial(log=lost))

    def test_a_study_ends_with_its_publication_or_goes_on(self, registry: Registry) -> None:
        lost = ArtifactRef(kind="compile_cache", sha256="c" * 64, size_bytes=3)
        study = begin(registry)
        end = StudyEnd(study.id, "finished", {})
        with pytest.raises(RegistryConflict, match="nothing was published"):
            registry.publish([samples.record(artifacts=(lost,))], now=NOW, end=end)
        assert registry.study(study.id).status == "running"
        registry.publish([samples.record()], now=NOW, end=end)
        assert registry.study(study.id).status == "finished"

    def test_publishing_with_an_unknown_study_publishes_nothing(self, registry: Registry) -> None:
        with pytest.raises(RecordNotFound):
            registry.publish([samples.record()], now=NOW, end=StudyEnd("f" * 32, "finished", {}))
        assert registry.history() == ()

    # Timings

    def test_timings_are_found_by_their_keys(self, registry: Registry) -> None:
        put = [samples.timing(rows) for rows in range(1, 1201)]
        kept = registry.put_timings(put, now=NOW, environment=samples.ENVIRONMENT)
        assert (kept.new, kept.better, kept.same) == (1200, 0, 0)
        wanted = [samples.timing_key(rows) for rows in range(1000, 2001)]
        found = registry.timings(wanted)
        assert {key.shape[0] for key in found} == set(range(1000, 1201))
        assert found[wanted[0]].timing == put[999]
        assert found[wanted[0]].timed_at == NOW

    @pytest.mark.parametrize(
        ("before", "after", "stays"),
        [
            (("measured", 1.0, 0), ("measured", 2.0, 5), 2.0),
            (("measured", 1.0, 5), ("measured", 2.0, 0), 1.0),
            (("measured", 1.0, 0), ("noisy", 2.0, 5), 1.0),
            (("noisy", 1.0, 5), ("measured", 2.0, 0), 2.0),
            (("noisy", 1.0, 0), ("noisy", 2.0, 5), 2.0),
            (("failed", 1.0, 5), ("measured", 2.0, 0), 2.0),
            (("measured", 1.0, 0), ("failed", 2.0, 5), 1.0),
            (("measured", 1.0, 0), ("unsupported", 2.0, 5), 1.0),
            (("noisy", 1.0, 5), ("failed", 2.0, 0), 1.0),
            (("failed", 1.0, 0), ("noisy", 2.0, 5), 2.0),
        ],
        ids=lambda value: f"{value[0]} at {value[2]}" if isinstance(value, tuple) else None,
    )
    def test_a_measured_time_wins_then_the_newer(
        self,
        registry: Registry,
        before: tuple[TimingOutcome, float, float],
        after: tuple[TimingOutcome, float, float],
        stays: float,
    ) -> None:
        registry.put_timings([samples.timing(1, *before[:2])], now=later(before[2]))
        kept = registry.put_timings([samples.timing(1, *after[:2])], now=later(after[2]))
        assert (kept.better, kept.same) == ((1, 0) if stays == after[1] else (0, 1))
        (found,) = registry.all_timings()
        assert found.timing.median_ms == stays

    def test_putting_timings_again_changes_nothing(self, registry: Registry) -> None:
        put = [samples.timing(1), samples.timing(2, "failed")]
        registry.put_timings(put, now=NOW)
        before = registry.all_timings()
        assert registry.put_timings(put, now=NOW).same == 2
        assert registry.merge_timings(before).same == 2
        assert registry.all_timings() == before

    def test_of_one_key_given_twice_the_better_stays(self, registry: Registry) -> None:
        put = [samples.timing(1, "failed"), samples.timing(1), samples.timing(1, "noisy", 9.0)]
        kept = registry.put_timings(put, now=NOW)
        assert (kept.new, kept.better, kept.same) == (1, 1, 1)
        assert [item.timing for item in registry.all_timings()] == [samples.timing(1)]

    def test_timings_are_listed_by_machine(self, registry: Registry) -> None:
        here, there = samples.ENVIRONMENT, samples.environment(torch="2.14.0", name="other CPU")
        registry.put_timings([samples.timing()], now=NOW, environment=here)
        registry.put_timings([samples.timing(place=there)], now=NOW, environment=there)
        assert len(registry.all_timings()) == 2
        for place in (here, there):
            (found,) = registry.all_timings(hardware=place.hardware.digest)
            assert found.timing == samples.timing(place=place)
            assert registry.all_timings(runtime=place.runtime.digest) == (found,)
        mixed = {"hardware": here.hardware.digest, "runtime": there.runtime.digest}
        assert registry.all_timings(**mixed) == ()
        places = registry.timing_places()
        assert places.hardware == {p.hardware.digest: p.hardware for p in (here, there)}
        assert places.runtimes == {p.runtime.digest: p.runtime for p in (here, there)}

    def test_a_timing_of_another_machine_is_refused(self, registry: Registry) -> None:
        elsewhere = samples.timing(2, place=samples.environment(name="other CPU"))
        put = [samples.timing(1), elsewhere]
        with pytest.raises(InvalidInput, match=elsewhere.key.digest[:12]):
            registry.put_timings(put, now=NOW, environment=samples.ENVIRONMENT)
        assert registry.all_timings() == ()

    def test_timings_are_never_garbage(self, registry: Registry) -> None:
        registry.put_timings([samples.timing()], now=NOW, environment=samples.ENVIRONMENT)
        registry.collect_garbage(now=datetime.now(UTC) + timedelta(days=9999))
        assert len(registry.all_timings()) == 1

    # Upkeep

    def test_the_last_verification_stands_beside_its_record(self, registry: Registry) -> None:
        record, other = samples.record(), samples.record(threads=2)
        registry.publish([record, other], now=NOW)
        assert registry.record(record.id).verification is None
        for found in (
            samples.verification(record),
            samples.verification(record, "slower", minutes=4),
        ):
            registry.note_verification(found)
            assert registry.record(record.id).verification == found
        (own,) = (item for item in registry.candidates() if item.record == record)
        assert own.verification is not None
        assert not own.verification.holds
        assert registry.record(other.id).verification is None
        with pytest.raises(RecordNotFound, match="no record"):
            registry.note_verification(found.model_copy(update={"record": "f" * 64}))

    def test_a_healthy_registry_has_nothing_to_report(self, registry: Registry) -> None:
        study = begin(registry)
        log = registry.put_artifact("log", b"said the worker")
        registry.add_trial(study.id, samples.trial(log=log))
        registry.publish([samples.record(artifacts=(log,))], now=NOW)
        registry.put_inventory("key", samples.inventory(), NOW)
        registry.put_timings([samples.timing()], now=NOW, environment=samples.ENVIRONMENT)
        assert registry.check() == []

    def test_garbage_is_what_nothing_names(self, registry: Registry) -> None:
        log = registry.put_artifact("log", b"said the worker")
        cache = registry.put_artifact("compile_cache", b"compiled")
        lost = registry.put_artifact("profile", b"nobody's")
        registry.add_trial(begin(registry).id, samples.trial(log=log))
        registry.publish([samples.record(artifacts=(cache,))], now=NOW)
        today = datetime.now(UTC)
        assert registry.collect_garbage(now=today).files == ()
        collected = registry.collect_garbage(now=today + timedelta(days=2))
        assert (collected.files, collected.freed_bytes) == ((lost.sha256,), 8)
        assert registry.read_artifact(log) == b"said the worker"
        assert registry.read_artifact(cache) == b"compiled"
        with pytest.raises(RecordNotFound):
            registry.artifact_path(lost)
        assert registry.check() == []
