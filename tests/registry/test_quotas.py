"""What goes beyond a quota, and what never does."""

from __future__ import annotations

import pytest

from registry.digest import canonical_json
from registry.errors import UntrustedArtifact
from registry.quotas import Quota, Trimmed
from registry.record import ArtifactRef, TuningRecord
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd
from tests.registry import samples
from tests.registry.conformance import begin
from tests.registry.samples import NOW, later

SIZE = 100
DAY_MINUTES = 24 * 60


def cache(registry: Registry, number: int) -> ArtifactRef:
    return registry.put_artifact("compile_cache", bytes([number]) * SIZE)


def publish(registry: Registry, number: int, artifact: ArtifactRef | None = None) -> TuningRecord:
    """An answer to the same question in another runtime, `number` days after NOW."""
    artifact = artifact or cache(registry, number)
    record = samples.record(torch=f"2.{number}", study=str(number) * 32, artifacts=(artifact,))
    registry.publish([record], now=later(number * DAY_MINUTES))
    return record


def quota(
    artifacts_bytes: float = 1e9, trials_bytes: float = 1e9, unused_days: float = 99
) -> Quota:
    """As things stand after the last of `unused_days`."""
    return Quota(artifacts_bytes, trials_bytes, later(unused_days * DAY_MINUTES))


def keeps(registry: Registry, record: TuningRecord, keys: SigningKeys) -> bool:
    try:
        registry.trusted_artifact(registry.record(record.id), record.artifacts[0], keys)
    except UntrustedArtifact as error:
        return "is not signed" in error.message
    return True


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> SigningKeys:
    return SigningKeys(tmp_path_factory.mktemp("keys"))


def kept(registry: Registry, records: list[TuningRecord], keys: SigningKeys) -> list[bool]:
    return [keeps(registry, record, keys) for record in records]


def test_below_the_quota_everything_stays(registry: Registry, keys: SigningKeys) -> None:
    records = [publish(registry, number) for number in range(1, 4)]
    assert registry.trim(quota(artifacts_bytes=3 * SIZE)) == Trimmed(0, 0)
    assert kept(registry, records, keys) == [True] * 3


def test_beyond_it_the_longest_unused_go_first(registry: Registry, keys: SigningKeys) -> None:
    """The first was fetched after the others were published."""
    records = [publish(registry, number) for number in range(1, 5)]
    registry.note_fetch(records[0].id, later(9 * DAY_MINUTES))
    assert registry.trim(quota(artifacts_bytes=3 * SIZE)).records == 1
    assert kept(registry, records, keys) == [True, False, True, True]
    assert registry.trim(quota(artifacts_bytes=2 * SIZE)).records == 1
    assert kept(registry, records, keys) == [True, False, False, True]


def test_what_a_plan_in_service_needs_never_goes(registry: Registry, keys: SigningKeys) -> None:
    """The newest answer, one that is pinned, and one that was fetched of late."""
    records = [publish(registry, number) for number in range(1, 5)]
    registry.pin(records[0].id, now=NOW)
    registry.note_fetch(records[1].id, later(50 * DAY_MINUTES))
    registry.trim(quota(artifacts_bytes=1, unused_days=40))
    assert kept(registry, records, keys) == [True, True, False, True]
    assert registry.check() == []


def test_what_is_out_of_service_goes_however_new(registry: Registry, keys: SigningKeys) -> None:
    old, new = (publish(registry, number) for number in (1, 2))
    registry.revoke(new.id, reason="grey", now=NOW)
    registry.trim(quota(artifacts_bytes=1, unused_days=0))
    assert kept(registry, [old, new], keys) == [True, False]


def test_bytes_that_two_records_share_count_once(registry: Registry, keys: SigningKeys) -> None:
    shared = cache(registry, 1)
    records = [publish(registry, number, shared) for number in (1, 2)]
    assert registry.trim(quota(artifacts_bytes=SIZE)) == Trimmed(0, 0)
    registry.trim(quota(artifacts_bytes=1))
    assert kept(registry, records, keys) == [False, True]
    assert registry.read_artifact(shared) == b"\x01" * SIZE


def test_trials_go_with_the_oldest_studies_that_ended(registry: Registry) -> None:
    log = registry.put_artifact("log", b"x" * 10**6)
    studies = [begin(registry, identity=str(number), minutes=number) for number in range(4)]
    for study in studies:
        registry.add_trial(study.id, samples.trial(log=log if study is studies[0] else None))
    for number in (2, 1, 0):
        end = StudyEnd(studies[number].id, "finished", {})
        published = [samples.record(study=studies[number].id)] if number == 1 else []
        registry.publish(published, now=later(60 - number), end=end)
    room = 10**6 + 3.5 * len(canonical_json(samples.trial()))
    assert registry.trim(quota(trials_bytes=room)).trials == 1, "its log counts"
    counts = [len(registry.trials(study.id)) for study in studies]
    assert counts == [1, 1, 0, 1], "the oldest by its end"
    assert registry.trim(quota(trials_bytes=1)).trials == 1
    counts = [len(registry.trials(study.id)) for study in studies]
    assert counts == [0, 1, 0, 1], "the study of a plan in service stays, and one under way"
    assert registry.check() == []


def test_an_open_jobs_study_keeps_its_trials(registry: Registry) -> None:
    study = begin(registry)
    registry.add_trial(study.id, samples.trial())
    registry.finish_study(study.id, status="failed", summary={}, now=NOW)
    registry.jobs.enqueue(samples.job(), priority=0, now=NOW)
    lease = registry.jobs.acquire("a", ("",), now=NOW, duration=later(1) - NOW)
    assert lease is not None
    registry.jobs.note_study(lease, study.id)
    assert registry.trim(quota(trials_bytes=1)).trials == 0
    registry.jobs.finish(lease, message="", now=NOW)
    assert registry.trim(quota(trials_bytes=1)).trials == 1
