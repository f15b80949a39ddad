"""Records on their way between registries: directly, over HTTP, and as a signed file."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import update

from registry.bundle import import_bundle, write_bundle
from registry.client import open_registry
from registry.errors import InvalidInput, RecordNotFound, RegistryReadOnly, UntrustedArtifact
from registry.location import Opening
from registry.record import ArtifactRef, TuningRecord
from registry.schema import RECORDS
from registry.server.app import Options
from registry.signing import SigningKeys
from registry.store import Registry
from registry.transfer import Transferred, copy, deliver, parcels
from tests.registry import samples
from tests.registry.samples import NOW, later
from tests.registry.server.serving import served


@dataclass(frozen=True)
class Two:
    """`source` holds a record with an artifact, and an unsigned one without; `keys` are its
    maker's, which the target's user trusts."""

    source: Registry
    target: Registry
    keys: SigningKeys
    artifact: ArtifactRef
    signed: TuningRecord
    unsigned: TuningRecord

    def copy(self) -> Transferred:
        return copy(self.source, self.target, parcels(self.source), now=later(9))


@pytest.fixture
def two(empty: Path, tmp_path: Path) -> Two:
    source, target = (shutil.copy(empty, tmp_path / name) for name in ("source", "target"))
    registry, keys = open_registry(source), SigningKeys(tmp_path / "keys")
    artifact = registry.put_artifact("compile_cache", b"compiled" * 1000)
    signed = samples.record(artifacts=(artifact,))
    unsigned = samples.record(threads=2)
    registry.publish([signed], now=NOW, keys=keys)
    registry.publish([unsigned], now=NOW)
    return Two(registry, open_registry(target), keys, artifact, signed, unsigned)


def test_records_arrive_as_they_were_signed(two: Two) -> None:
    assert two.copy() == Transferred((two.signed.id, two.unsigned.id))
    here, there = two.target.record(two.signed.id), two.source.record(two.signed.id)
    assert (here.body, here.signature, here.published_at) == (
        there.body,
        there.signature,
        later(9),
    )
    assert two.target.trusted_artifact(here, two.artifact, two.keys) == b"compiled" * 1000
    assert two.target.record(two.unsigned.id).signature is None
    assert two.copy() == Transferred(known=2)
    assert two.target.check() == []


def test_the_newer_of_a_key_stays_and_what_was_revoked_does_not_come_back(two: Two) -> None:
    newer = samples.record(minutes=5)
    two.target.publish([newer], now=NOW)
    two.target.publish([two.unsigned], now=NOW)
    two.target.revoke(two.unsigned.id, reason="black pictures", now=NOW)
    assert two.copy() == Transferred(known=2)
    assert [found.record.id for found in two.target.candidates()] == [newer.id]


def test_nothing_older_comes_back_for_what_was_revoked(two: Two) -> None:
    newer = samples.record(minutes=5)
    two.target.publish([newer], now=NOW)
    two.target.revoke(newer.id, reason="black pictures", now=NOW)
    assert two.copy() == Transferred((two.unsigned.id,), known=1)
    assert [found.record.id for found in two.target.candidates()] == [two.unsigned.id]


def test_the_target_decides_when_it_publishes(two: Two) -> None:
    """By what another process published in between, and by what this release cannot read."""
    newer = samples.record(minutes=5)
    two.target.publish([newer], now=later(5))
    with two.target._database.write() as connection:
        connection.execute(update(RECORDS).values(minimum_reader=99))
    assert two.target.history() == ()
    assert two.copy() == Transferred((two.unsigned.id,), known=1)
    with two.target._database.write() as connection:
        connection.execute(update(RECORDS).values(body=b"{", minimum_reader=1))
    first = parcels(two.source)[0]
    assert not deliver(two.target, first, NOW)


def test_what_comes_from_the_future_is_left_out(two: Two) -> None:
    two.source.publish([samples.record(minutes=60, threads=3)], now=NOW)
    done = copy(two.source, two.target, parcels(two.source), now=NOW)
    assert done.new == (two.signed.id, two.unsigned.id)
    assert "later than now" in done.left_out[0]


def test_what_is_lost_at_the_source_is_left_out(two: Two) -> None:
    two.source.artifact_path(two.artifact).unlink()
    done = two.copy()
    assert done.new == (two.unsigned.id,)
    assert two.signed.id[:12] in done.left_out[0]


def test_records_are_chosen_by_name_or_model(two: Two) -> None:
    other = samples.record(name="sdxl", architecture="c" * 64)
    two.source.publish([other], now=later(1))
    assert [item.id for item in parcels(two.source, model_name="sdxl")] == [other.id]
    named = parcels(two.source, record_ids=[two.signed.id[:8]])
    assert [item.id for item in named] == [two.signed.id]
    assert parcels(two.source)[-1].id == other.id
    two.source.revoke(other.id, reason="bad", now=NOW)
    twice = parcels(two.source, record_ids=[two.signed.id[:8], two.signed.id])
    assert [item.id for item in twice] == [two.signed.id]
    with pytest.raises(RecordNotFound, match="is revoked"):
        parcels(two.source, record_ids=[other.id])


def test_what_is_named_is_all_that_is_read(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Registry, "candidates")
    assert [item.id for item in parcels(two.source, record_ids=[two.signed.id])] == [two.signed.id]


def test_to_a_service_and_back(two: Two, tmp_path: Path) -> None:
    """Which takes only what is signed by a key that it trusts."""
    with served(two.target.path, tmp_path / "service", Options()) as service:
        service.keys.trust("maker", two.keys.public_key.public_key)
        options = Opening(tmp_path / "cache", service.secrets["publish"])
        remote = open_registry(service.url, opening=options)
        done = copy(two.source, remote, parcels(two.source), now=NOW)
        assert done.new == (two.signed.id,)
        assert "not signed" in done.left_out[0]
        third = open_registry(tmp_path / "third.sqlite3")
        assert copy(remote, third, parcels(remote), now=NOW).new == (two.signed.id,)
    found = third.record(two.signed.id)
    assert third.trusted_artifact(found, two.artifact, two.keys) == b"compiled" * 1000


# Bundles


@pytest.fixture
def bundle(two: Two, tmp_path: Path) -> Path:
    path = tmp_path / "plans.bundle"
    inventories = {"catalog:tiny-flux": samples.inventory()}
    write_bundle(
        path, two.source, parcels(two.source), keys=two.keys, now=NOW, inventories=inventories
    )
    return path


def test_a_bundle_is_taken_in_whole(two: Two, bundle: Path) -> None:
    done = import_bundle(bundle, two.target, keys=two.keys, now=NOW)
    assert done == Transferred((two.signed.id, two.unsigned.id))
    found = two.target.record(two.signed.id)
    assert two.target.trusted_artifact(found, two.artifact, two.keys) == b"compiled" * 1000
    assert two.target.inventory("catalog:tiny-flux") == samples.inventory()
    assert import_bundle(bundle, two.target, keys=two.keys, now=NOW) == Transferred(known=2)
    assert [path for path in bundle.parent.iterdir() if path.name.startswith(".plans")] == []


def test_a_bundle_by_a_stranger_is_not_read(two: Two, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedArtifact, match="not trusted here"):
        import_bundle(bundle, two.target, keys=SigningKeys(tmp_path / "other"), now=NOW)
    assert two.target.history() == ()


def test_what_is_lost_is_left_out_of_a_bundle(two: Two, tmp_path: Path) -> None:
    two.source.artifact_path(two.artifact).unlink()
    path, found = tmp_path / "some.bundle", parcels(two.source)
    done = write_bundle(path, two.source, found, keys=two.keys, now=NOW, inventories={})
    assert (done.new, len(done.left_out)) == ((two.unsigned.id,), 1)
    assert import_bundle(path, two.target, keys=two.keys, now=NOW).new == (two.unsigned.id,)
    with pytest.raises(InvalidInput, match="no record to export"):
        write_bundle(path, two.source, found[:1], keys=two.keys, now=NOW, inventories={})


def test_a_bundle_into_a_service_leaves_out_what_it_refuses(
    two: Two, bundle: Path, tmp_path: Path
) -> None:
    with served(two.target.path, tmp_path / "service", Options()) as service:
        service.keys.trust("maker", two.keys.public_key.public_key)
        options = Opening(tmp_path / "cache", service.secrets["publish"])
        remote = open_registry(service.url, opening=options)
        done = import_bundle(bundle, remote, keys=two.keys, now=NOW)
    assert done.new == (two.signed.id,)
    assert "not signed" in done.left_out[0]


def test_nothing_is_no_bundle(two: Two, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no record to export"):
        write_bundle(tmp_path / "none", two.source, [], keys=two.keys, now=NOW, inventories={})
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_bundle(
            tmp_path / "nowhere" / "x",
            two.source,
            parcels(two.source),
            keys=two.keys,
            now=NOW,
            inventories={},
        )


Members = list[tuple[tarfile.TarInfo, bytes]]


def rewritten(path: Path, change: Callable[[Members], Members]) -> None:
    with tarfile.open(path) as archive:
        members = [
            (member, reader.read())
            for member in archive
            if (reader := archive.extractfile(member)) is not None
        ]
    with tarfile.open(path, "w") as archive:
        for member, data in change(members):
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def other_budget(data: bytes) -> bytes:
    said = json.loads(data)
    said["records"][0]["record"]["budget_bytes"] += 1
    return json.dumps(said).encode()


def link(to: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"artifacts/{'a' * 64}")
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member, b""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: [(m[0][0], other_budget(m[0][1])), *m[1:]], UntrustedArtifact),
        (lambda m: [m[0], (m[1][0], b"{}"), *m[2:]], UntrustedArtifact),
        (lambda m: [m[0], *m[2:]], InvalidInput),
        (lambda m: [m[1], m[0], *m[2:]], InvalidInput),
        (lambda m: m[:2], InvalidInput),
        (lambda m: [*m[:2], (m[2][0], m[2][1][:-1] + b"x")], InvalidInput),
        (lambda m: [*m[:2], (m[2][0], m[2][1] + b"x")], InvalidInput),
        (lambda m: [*m[:2], link("/etc/passwd"), *m[2:]], InvalidInput),
        (lambda m: [*m[:2], (tarfile.TarInfo("../../evil"), b"evil"), *m[2:]], InvalidInput),
        (lambda m: [*m[:2], (tarfile.TarInfo("artifacts/../../evil"), b"evil")], InvalidInput),
        (lambda m: m[:0], InvalidInput),
    ],
    ids=[
        "a changed record", "no signature in it", "no signature", "another order", "no artifact",
        "other bytes", "more bytes", "a link", "a way up", "another way up", "nothing",
    ],
)  # fmt: skip
def test_a_bundle_that_was_changed_is_refused(
    two: Two, bundle: Path, change: Callable[[Members], Members], error: type[Exception]
) -> None:
    rewritten(bundle, change)
    before = set(bundle.parent.rglob("*"))
    with pytest.raises(error):
        import_bundle(bundle, two.target, keys=two.keys, now=NOW)
    assert two.target.history() == ()
    new = {path for path in bundle.parent.rglob("*") if path.is_file()} - before
    assert {path.parent.parent for path in new} <= {Path(f"{two.target.path}.artifacts")}


def header(kind: bytes, size_bytes: int, name: str = "manifest.json") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size_bytes
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "head",
    [
        header(tarfile.GNUTYPE_LONGNAME, 600 << 20),
        header(tarfile.XGLTYPE, 0) * 5000,
        header(tarfile.XHDTYPE, 0) * 5000,
        header(tarfile.GNUTYPE_SPARSE, 512),
        header(tarfile.REGTYPE, 1 << 70),
        header(tarfile.REGTYPE, -512),
    ],
    ids=["a long name", "global headers", "headers", "a sparse file", "too long", "negative"],
)
def test_a_header_before_the_signature_does_no_harm(two: Two, bundle: Path, head: bytes) -> None:
    bundle.write_bytes(head + bundle.read_bytes())
    with pytest.raises(InvalidInput):
        import_bundle(bundle, two.target, keys=two.keys, now=NOW)


def test_a_larger_artifact_is_not_written(
    two: Two, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(bundle, lambda members: [*members[:2], (members[2][0], bytes(1 << 20))])
    monkeypatch.delattr(Registry, "incoming_artifact")
    with pytest.raises(InvalidInput, match="other bytes"):
        import_bundle(bundle, two.target, keys=two.keys, now=NOW)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
def test_a_bundle_that_was_cut_is_refused(two: Two, bundle: Path, share: float) -> None:
    data = bundle.read_bytes()
    bundle.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidInput):
        import_bundle(bundle, two.target, keys=two.keys, now=NOW)
    assert two.target.history() == ()


def test_any_other_file_is_no_bundle(two: Two, tmp_path: Path) -> None:
    for data in (b"", b"nonsense" * 1000, b"\0" * 10240):
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(InvalidInput):
            import_bundle(tmp_path / "other", two.target, keys=two.keys, now=NOW)


def test_a_target_that_takes_nothing_is_told(two: Two, bundle: Path, tmp_path: Path) -> None:
    two.target._database.refusal = RegistryReadOnly("closed")
    with pytest.raises(RegistryReadOnly):
        import_bundle(bundle, two.target, keys=two.keys, now=NOW)
