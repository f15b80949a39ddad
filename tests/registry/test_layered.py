"""A registry of one's own over one that is only read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import update

from registry.client import open_registry
from registry.errors import (
    AmbiguousId,
    InvalidInput,
    RecordNotFound,
    RegistryCorrupt,
    RegistryMissing,
    RegistryReadOnly,
)
from registry.location import Opening
from registry.schema import STUDIES
from registry.signing import SigningKeys
from registry.store import Registry
from tests.registry import samples
from tests.registry.conformance import RecordConformance, begin
from tests.registry.samples import NOW, later
from tests.registry.server.serving import served


@pytest.fixture
def base(empty: Path, tmp_path: Path) -> Registry:
    """As its owner has it."""
    path = tmp_path / "base" / "registry.sqlite3"
    path.parent.mkdir()
    shutil.copy(empty, path)
    return open_registry(path, create=False)


@pytest.fixture
def opening(base: Registry, tmp_path: Path) -> Opening:
    return Opening(tmp_path / "cache", base=str(base.path))


@pytest.fixture
def registry(path: Path, empty: Path, opening: Opening) -> Registry:
    shutil.copy(empty, path)
    return open_registry(path, create=False, opening=opening)


class TestOverAnEmptyBase(RecordConformance):
    pass


def ids(registry: Registry) -> set[str]:
    return {found.record.id for found in registry.candidates()}


def test_what_is_not_known_comes_from_the_base(
    base: Registry, registry: Registry, tmp_path: Path
) -> None:
    keys = SigningKeys(tmp_path / "keys")
    artifact = base.put_artifact("compile_cache", b"compiled")
    record, own = samples.record(artifacts=(artifact,)), samples.record(threads=2)
    base.publish([record], now=NOW, keys=keys)
    base.put_inventory("key", samples.inventory(), NOW)
    base.put_timings([samples.timing()], now=NOW)
    registry.publish([own], now=later(1))
    assert ids(registry) == {record.id, own.id}
    assert [found.record.id for found in registry.history()] == [own.id, record.id]
    assert registry.record(record.id[:9]) == base.record(record.id)
    assert registry.trusted_artifact(registry.record(record.id), artifact, keys) == b"compiled"
    assert registry.artifact_path(artifact).read_bytes() == b"compiled"
    assert registry.inventory("key") == samples.inventory()
    assert list(registry.timings([samples.timing_key()])) == [samples.timing_key()]
    assert registry.notes == ()


def test_the_own_record_of_a_key_wins(base: Registry, registry: Registry) -> None:
    """Also over a newer one, and also once it was revoked."""
    own, theirs = samples.record(), samples.record(minutes=5)
    base.publish([theirs], now=later(5))
    assert ids(registry) == {theirs.id}
    registry.publish([own], now=NOW)
    assert ids(registry) == {own.id}
    assert registry.history(key_digest=own.key.digest) == (registry.record(own.id),)
    registry.revoke(own.id, reason="bad", now=NOW)
    assert ids(registry) == set()


def test_a_record_of_the_base_is_revoked_or_pinned_here_alone(
    base: Registry, registry: Registry
) -> None:
    bad, good = samples.record(), samples.record(threads=2)
    base.publish([bad, good], now=NOW)
    registry.revoke(bad.id[:12], reason="black pictures", now=NOW)
    assert registry.pin(good.id, now=NOW) == good.id
    assert registry.revoked_reason(bad.id) == "black pictures"
    (found,) = registry.candidates()
    assert (found.record, found.pinned) == (good, True)
    assert ids(base) == {bad.id, good.id}
    assert not any(item.pinned for item in base.candidates())


def test_studies_of_both_are_seen(base: Registry, registry: Registry) -> None:
    theirs, own = begin(base, "theirs"), begin(registry, "own", minutes=1)
    base.add_trial(theirs.id, samples.trial())
    assert registry.studies() == (own, theirs)
    assert registry.study(theirs.id[:8]) == theirs
    assert registry.trials(theirs.id) == (samples.trial(),)
    plan = samples.trial().plan.digest
    assert registry.trials_of_plan(plan) == ((theirs, samples.trial()),)
    with pytest.raises(RecordNotFound):
        registry.add_trial(theirs.id, samples.trial())


def test_the_base_is_never_written(base: Registry, registry: Registry, opening: Opening) -> None:
    base.publish([samples.record()], now=NOW)
    before = base.path.read_bytes()
    registry.note_fetch(samples.record().id, NOW)
    registry.publish([samples.record(threads=3)], now=NOW)
    alone = open_registry(base.path.parent / "none.sqlite3", create=False, opening=opening)
    assert ids(alone) == ids(base)
    with pytest.raises(RegistryReadOnly, match="only read"):
        alone.publish([samples.record(threads=4)], now=NOW)
    assert base.path.read_bytes() == before


def test_either_change_makes_another_version(base: Registry, registry: Registry) -> None:
    seen = [registry.version()]
    for number, one in enumerate((base, registry), start=5):
        one.publish([samples.record(threads=number)], now=NOW)
        seen.append(registry.version())
    assert len(set(seen)) == len(seen)


def test_a_base_that_cannot_be_read_is_told_and_done_without(
    base: Registry, registry: Registry
) -> None:
    registry.publish([samples.record()], now=NOW)
    base.path.write_bytes(b"no database" * 1000)
    assert ids(registry) == {samples.record().id}
    assert "base registry" in registry.notes[0]
    assert registry.record(samples.record().id[:8]).record == samples.record()
    with pytest.raises(RegistryCorrupt):
        registry.record("f" * 64)
    with pytest.raises(RecordNotFound):
        registry.study("f" * 32)
    own = begin(registry, "own")
    assert registry.study(own.id[:8]) == own


def test_a_base_that_is_not_there_hides_nothing(
    registry: Registry, empty: Path, tmp_path: Path
) -> None:
    """And it is seen once it is there."""
    registry.publish([samples.record()], now=NOW)
    late = tmp_path / "late" / "registry.sqlite3"
    opening = Opening(tmp_path / "cache", base=str(late))
    over = open_registry(registry.path, create=False, opening=opening)
    assert ids(over) == {samples.record().id}
    assert over.inventory("key") is None
    assert str(late) in over.notes[0]
    late.parent.mkdir()
    shutil.copy(empty, late)
    open_registry(late).publish([samples.record(threads=2)], now=NOW)
    assert ids(over) == {samples.record().id, samples.record(threads=2).id}


def test_a_base_may_say_anything(
    base: Registry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish([samples.record()], now=NOW)

    def refuse(*_: object, **__: object) -> None:
        raise InvalidInput("model_name: too long")

    monkeypatch.setattr(registry._base, "candidates", refuse)  # type: ignore[attr-defined]
    assert ids(registry) == {samples.record().id}
    assert registry.notes == ("base registry: model_name: too long",)


def test_what_the_base_lost_can_be_revoked_and_says_why_it_is_not_pinned(
    base: Registry, registry: Registry, tmp_path: Path
) -> None:
    artifact = base.put_artifact("compile_cache", b"compiled")
    record = samples.record(artifacts=(artifact,))
    base.publish([record], now=NOW, keys=SigningKeys(tmp_path / "keys"))
    base.artifact_path(artifact).unlink()
    with pytest.raises(RegistryCorrupt, match=artifact.sha256):
        registry.pin(record.id, now=NOW)
    registry.note_verification(samples.verification(record))
    assert "is not kept" in registry.notes[0]
    assert registry.revoke(record.id[:8], reason="black pictures", now=NOW) == record.id
    assert ids(registry) == set()
    assert registry.revoked_reason(record.id) == "black pictures"
    assert registry.record(record.id).signature == base.record(record.id).signature
    assert registry.check() == []


def test_what_came_of_running_a_record_of_the_base_is_kept_here(
    base: Registry, registry: Registry
) -> None:
    base.publish([samples.record()], now=NOW)
    found = samples.verification(samples.record(), "slower")
    registry.note_verification(found)
    assert registry.record(samples.record().id).verification == found
    assert base.record(samples.record().id).verification is None
    assert registry.notes == ()


def test_digits_are_told_apart_over_both(base: Registry, registry: Registry) -> None:
    own, theirs = "ab12cd" + "0" * 58, "ab12ce" + "0" * 58
    for one, name in ((registry, own), (base, theirs)):
        one.publish([samples.record()], now=NOW)
        study = begin(one, name)
        with one._database.write() as connection:
            connection.execute(update(STUDIES).where(STUDIES.c.id == study.id).values(id=name[:32]))
    with pytest.raises(AmbiguousId, match=f"{own[:16]} or {theirs[:16]}"):
        registry.study("ab12")
    assert registry.study("ab12cd").id == own[:32]
    assert registry.study("ab12ce").id == theirs[:32]
    begin(registry, "another")
    with registry._database.write() as connection:
        connection.execute(
            update(STUDIES).where(STUDIES.c.id != own[:32]).values(id="ab12cd1" + "0" * 25)
        )
    with pytest.raises(AmbiguousId):
        registry.study("ab12cd")


def test_a_base_may_be_served(base: Registry, path: Path, tmp_path: Path) -> None:
    theirs = samples.record()
    base.publish([theirs], now=NOW)
    with served(base.path, tmp_path / "service") as service:
        opening = Opening(tmp_path / "cache", service.secrets["read"], service.url)
        registry = open_registry(path, opening=opening)
        assert ids(registry) == {theirs.id}
        assert registry.timings([samples.timing_key()]) == {}
        registry.revoke(theirs.id, reason="bad", now=NOW)
    assert ids(registry) == set()


def test_what_cannot_be_layered_is_told(opening: Opening, path: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot lie over a base"):
        open_registry("https://registry.example.com", opening=opening)
    nowhere = Opening(tmp_path, base=str(tmp_path / "nowhere"))
    with pytest.raises(RegistryMissing, match="nowhere"):
        open_registry(path, create=False, opening=nowhere)
