"""What kills, full disks, missing permission and flipped bits leave behind."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.errors import (
    InvalidInput,
    RegistryCorrupt,
    RegistryError,
    RegistryMissing,
)
from registry.record import ArtifactRef
from registry.store import Registry
from tests.registry import children, samples
from tests.registry.samples import NOW

KILLS = 4
FLIPS = 40


def artifact_folder(registry: Registry) -> Path:
    return registry.path.with_name(f"{registry.path.name}.artifacts")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Killed


def test_killed_while_publishing(path: Path, sqlite_driver: str, soak_seed: int) -> None:
    moments = random.Random(soak_seed)
    registry = open_registry(path)
    for round_number in range(KILLS):
        child, pipe = children.started(children.publish_for_ever, path, round_number * 1_000_000)
        assert pipe.poll(children.TIMEOUT_S)
        time.sleep(moments.uniform(0, 0.15))
        child.kill()
        child.join()
        assert_whole(registry)
    registry.publish([samples.record()], now=NOW)
    registry.collect_garbage(now=datetime.now(UTC) + timedelta(days=2))
    assert_whole(registry)
    assert not list((artifact_folder(registry) / "tmp").glob("*"))


def assert_whole(registry: Registry) -> None:
    """Every study has published all its records and is finished, or none and is running."""
    assert registry.check() == []
    published: dict[str, int] = {}
    for entry in registry.history(limit=100_000):
        published[entry.record.study] = published.get(entry.record.study, 0) + 1
    for study in registry.studies(limit=100_000):
        expected = children.BATCH if study.status == "finished" else 0
        assert published.get(study.id, 0) == expected


def test_a_kill_before_the_row_leaves_an_orphan(registry: Registry) -> None:
    staged = registry._artifacts.stage(b"placed, then killed")
    staged.place()
    unknown = ArtifactRef(kind="log", sha256=staged.sha256, size_bytes=staged.size_bytes)
    with pytest.raises(RegistryError, match="no artifact"):
        registry.artifact_path(unknown)
    assert registry.check() == []
    tomorrow = datetime.now(UTC) + timedelta(days=2)
    assert registry.collect_garbage(now=tomorrow).files == (staged.sha256,)
    assert not staged.final.exists()


# Full


def test_a_full_disk_while_publishing(path: Path, sqlite_driver: str) -> None:
    registry = open_registry(path)
    registry.publish([samples.record()], now=NOW)
    before = registry.history()
    kind, message = children.alone(
        children.publish_under_limit, path, path.stat().st_size + children.LIMIT_BYTES_MARGIN
    )
    assert kind == "RegistryFull"
    assert str(path) in message
    assert registry.history() == before
    assert registry.check() == []
    registry.publish([samples.record(minutes=1)], now=NOW)


def test_a_full_disk_while_putting_an_artifact(registry: Registry) -> None:
    kind, _ = children.alone(children.put_under_limit, registry.path, 1 << 20)
    assert kind == "RegistryFull"
    assert contents(artifact_folder(registry)) == {}
    assert registry.check() == []


def test_a_full_disk_while_creating(path: Path) -> None:
    kind, _ = children.alone(children.create_under_limit, path, 10_000)
    assert kind == "RegistryFull"
    with pytest.raises(RegistryMissing):
        open_registry(path, create=False)
    assert open_registry(path).check() == []


def test_a_full_disk_still_answers(path: Path, sqlite_driver: str) -> None:
    record = samples.record()
    open_registry(path).publish([record], now=NOW)
    assert children.alone(children.answers_under_limit, path, 100) == [record.id]


# Without permission


@contextmanager
def read_only(folder: Path, *, files: bool) -> Iterator[None]:
    paths = [folder, *(path for path in folder.rglob("*") if files or path.is_dir())]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & 0o555)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("files", [True, False], ids=["files and folder", "folder alone"])
def test_read_only_still_answers(tmp_path: Path, sqlite_driver: str, files: bool) -> None:
    folder = tmp_path / "registry"
    registry = open_registry(folder / "registry.sqlite3")
    artifact = registry.put_artifact("compile_cache", b"compiled")
    record = samples.record(artifacts=(artifact,))
    registry.publish([record], now=NOW)
    before = contents(folder)
    with read_only(folder, files=files):
        said = children.alone(children.answers_when_read_only, registry.path)
    assert said == [record.id, "RegistryReadOnly", "RegistryReadOnly", "RegistryReadOnly"]
    assert contents(folder) == before


def test_no_permission_to_create(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    with read_only(folder, files=False):
        for path in (folder / "registry.sqlite3", folder / "deeper" / "registry.sqlite3"):
            kind, message = children.alone(children.create_when_read_only, path)
            assert kind == "RegistryReadOnly"
            assert str(folder) in message


# Damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"this is not a database" * 1000,
        lambda data: data[:5000],
        lambda data: data[: len(data) // 2],
        lambda data: b"\0" * len(data),
    ],
    ids=["garbage", "a page and a bit", "half", "zeros"],
)
def test_a_damaged_file_is_reported(path: Path, damage: Callable[[bytes], bytes]) -> None:
    open_registry(path).publish([samples.record()], now=NOW)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RegistryCorrupt, match=r"damaged|not a registry"):
        open_registry(path, create=False).history()


def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RegistryCorrupt, match="not a registry"):
        open_registry(path)
    assert path.read_bytes() == before


def test_a_flipped_bit_in_a_record_is_never_served(registry: Registry) -> None:
    records = [samples.record(threads=number) for number in (1, 2)]
    registry.publish(records, now=NOW)
    damaged, whole = records
    with sqlite3.connect(registry.path) as raw:
        (body,) = raw.execute("SELECT body FROM records WHERE id = ?", [damaged.id]).fetchone()
        flipped = bytes([*body[:400], body[400] ^ 1, *body[401:]])
        raw.execute("UPDATE records SET body = ? WHERE id = ?", [flipped, damaged.id])
    raw.close()
    assert [found.record for found in registry.candidates()] == [whole]
    with pytest.raises(RegistryCorrupt, match=damaged.id):
        registry.record(damaged.id)
    (problem,) = registry.check()
    assert damaged.id in problem
    registry.revoke(damaged.id, reason="damaged", now=NOW)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("peak_vram_bytes", 1),
        ("architecture", "c" * 64),
        ("plan_digest", "c" * 64),
        ("published_at", "yesterday"),
        ("minimum_reader", "x"),
        ("sha256", b"\xff"),
        ("body", "text"),
    ],
)
def test_a_changed_column_is_never_served(registry: Registry, column: str, value: object) -> None:
    registry.publish([samples.record()], now=NOW)
    with sqlite3.connect(registry.path) as raw:
        raw.execute(f"UPDATE records SET {column} = ?", [value])
    raw.close()
    assert registry.candidates() == ()
    assert len(registry.check()) == 1


@pytest.mark.parametrize(
    ("column", "value"), [("body", b"{}"), ("body", "text"), ("sha256", "c" * 64)]
)
def test_a_damaged_verification_is_reported(registry: Registry, column: str, value: object) -> None:
    record = samples.record()
    registry.publish([record], now=NOW)
    registry.note_verification(samples.verification(record))
    with sqlite3.connect(registry.path) as raw:
        raw.execute(f"UPDATE verifications SET {column} = ?", [value])
    raw.close()
    assert registry.candidates() == ()
    (problem,) = registry.check()
    assert f"the verification of record {record.id} is damaged" in problem


def test_flips_anywhere_are_found_or_harmless(tmp_path: Path, soak_seed: int) -> None:
    """Whatever bit of the file flips: what is served is what was published, and what is missing
    is reported."""
    path = tmp_path / "whole.sqlite3"
    registry = open_registry(path)
    published = {record.id: record for record in [samples.record(threads=n) for n in (1, 2, 3)]}
    registry.publish(list(published.values()), now=NOW)
    registry.note_verification(samples.verification(published[min(published)], "slower"))
    expected = registry.candidates()
    data, flips = path.read_bytes(), random.Random(soak_seed)
    for number in range(FLIPS):
        flipped = bytearray(data)
        flipped[flips.randrange(len(data))] ^= 1 << flips.randrange(8)
        copy = tmp_path / f"flipped-{number}.sqlite3"
        copy.write_bytes(flipped)
        try:
            survivor = open_registry(copy, create=False)
            served, problems = survivor.candidates(), survivor.check()
        except RegistryError:
            continue
        known = {found.record.id: (found.record, found.verification) for found in expected}
        assert all(known[item.record.id] == (item.record, item.verification) for item in served)
        if [found.record for found in served] != [found.record for found in expected]:
            assert problems


def test_a_damaged_trial_is_left_out(registry: Registry) -> None:
    study_id = children.begin_study(registry.path)
    for threads in (1, 2):
        registry.add_trial(study_id, samples.trial(threads))
    with sqlite3.connect(registry.path) as raw:
        raw.execute("UPDATE trials SET body = x'00' WHERE id = 1")
    raw.close()
    assert registry.trials(study_id) == (samples.trial(2),)
    (problem,) = registry.check()
    assert "trial 1" in problem


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", b"{}"),
        ("body", "text"),
        ("sha256", "0" * 64),
        ("outcome", "failed"),
        ("hardware_digest", "0" * 64),
        ("timed_at", "yesterday"),
        ("key_digest", "0" * 64),
    ],
)
def test_a_changed_timing_is_never_served(registry: Registry, column: str, value: object) -> None:
    registry.put_timings([samples.timing(1), samples.timing(2)], now=NOW)
    change_row(registry.path, f"UPDATE timings SET {column} = ? WHERE key_digest = ?", value)
    assert [item.timing for item in registry.all_timings()] == [samples.timing(2)]
    assert list(registry.timings([samples.timing_key(1)])) == []
    (problem,) = registry.check()
    assert "timing" in problem


def change_row(path: Path, statement: str, value: object) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute(statement, [value, samples.timing_key(1).digest])
    raw.close()


def test_a_timing_taken_again_heals_a_damaged_one(registry: Registry) -> None:
    registry.put_timings([samples.timing(1)], now=NOW)
    change_row(registry.path, "UPDATE timings SET body = ? WHERE key_digest = ?", b"{}")
    assert registry.put_timings([samples.timing(1, "noisy")], now=NOW).new == 1
    assert registry.check() == []
    assert registry.timings([samples.timing_key(1)])[samples.timing_key(1)].timing.median_ms == 1.5


def test_a_damaged_place_is_left_out(registry: Registry) -> None:
    registry.put_timings([samples.timing(1)], now=NOW, environment=samples.ENVIRONMENT)
    with sqlite3.connect(registry.path) as raw:
        raw.execute("UPDATE timing_places SET body = x'7B7D' WHERE part = 'hardware'")
    raw.close()
    places = registry.timing_places()
    assert (places.hardware, len(places.runtimes)) == ({}, 1)
    (problem,) = registry.check()
    assert samples.HARDWARE.digest in problem


# Artifacts


def test_a_tampered_artifact_is_refused(registry: Registry) -> None:
    artifact = registry.put_artifact("compile_cache", b"compiled")
    stored = registry.artifact_path(artifact)
    for damage in (b"compilee", b"compil", b""):
        stored.write_bytes(damage)
        for read in (registry.artifact_path, registry.read_artifact):
            with pytest.raises(RegistryCorrupt, match=artifact.sha256):
                read(artifact)
        assert len(registry.check()) == 1
    stored.unlink()
    with pytest.raises(RegistryCorrupt):
        registry.artifact_path(artifact)
    assert registry.put_artifact("compile_cache", b"compiled") == artifact
    assert registry.read_artifact(artifact) == b"compiled"
    assert registry.check() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "A" * 64, "0" * 63, ""])
def test_an_artifact_has_no_other_path(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput, match="64 hex digits"):
        registry._artifacts.path(name)


def test_everything_is_private(tmp_path: Path, sqlite_driver: str) -> None:
    folder = tmp_path / "new"
    registry = open_registry(folder / "registry.sqlite3")
    registry.put_artifact("log", b"said the worker")
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_registry_can_be_copied(registry: Registry, tmp_path: Path) -> None:
    artifact = registry.put_artifact("log", b"said the worker")
    registry.publish([samples.record(artifacts=(artifact,))], now=NOW)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(registry.path, elsewhere)
    shutil.copytree(artifact_folder(registry), elsewhere / artifact_folder(registry).name)
    copy = open_registry(elsewhere / registry.path.name, create=False)
    assert copy.check() == []
    assert copy.read_artifact(artifact) == b"said the worker"
