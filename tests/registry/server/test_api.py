"""The service's answers, asked over HTTP."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from registry.digest import canonical_json
from registry.record import ArtifactRef, TuningRecord
from registry.signing import KEY_FILE, TRUST_FILE, SigningKeys, statements
from registry.studies import StudyEnd
from registry.wire import Publication, RecordAnswer, StatementSignature
from tests.registry import samples
from tests.registry.conformance import begin
from tests.registry.samples import NOW, later
from tests.registry.server.serving import Served


def publication(keys: SigningKeys, *records: TuningRecord) -> dict[str, Any]:
    signed = [
        StatementSignature(statement=statement, signature=keys.sign(statement))
        for record in records
        for statement in statements(record, canonical_json(record))
    ]
    whole = Publication(records=records, signatures=tuple(signed))
    return whole.model_dump(mode="json")


def test_health_needs_its_registry(fresh: Served) -> None:
    with fresh.client() as client:
        assert client.get("/v1/health").json() == {"status": "ok"}
        fresh.registry.path.unlink()
        answer = client.get("/v1/health")
    assert answer.status_code == 503
    assert str(fresh.registry.path) not in answer.text


def test_a_record_is_published_and_found(fresh: Served) -> None:
    record, fresh.now = samples.record(), later(7)
    with fresh.client("publish") as client:
        sent = client.post("/v1/records", json=publication(fresh.keys, record))
        again = client.post("/v1/records", json=publication(fresh.keys, record))
    assert (sent.status_code, sent.json()) == (201, {"ids": [record.id]})
    assert again.status_code == 201
    (stored,) = fresh.registry.candidates()
    assert (stored.record, stored.published_at) == (record, later(7))
    with fresh.client() as client:
        page = client.get("/v1/candidates", params={"model_name": "tiny-flux"}).json()
        one = client.get(f"/v1/records/{record.id[:12]}").json()
    assert page["records"] == [one]
    assert page["after"] is None
    assert RecordAnswer.model_validate_json(json.dumps(one)).record == record
    assert stored.statement is not None
    fresh.keys.verify(stored.statement, stored.signature)


def test_an_older_record_does_not_replace_a_newer(fresh: Served) -> None:
    older, newer = samples.record(), samples.record(minutes=5)
    with fresh.client("publish") as client:
        client.post("/v1/records", json=publication(fresh.keys, newer))
        sent = client.post("/v1/records", json=publication(fresh.keys, older))
        future = samples.record(minutes=60)
        refused = client.post("/v1/records", json=publication(fresh.keys, future))
    assert (sent.status_code, sent.json()) == (201, {"ids": []})
    assert (refused.status_code, refused.json()["kind"]) == (422, "InvalidInput")
    assert [found.record for found in fresh.registry.history()] == [newer]


def test_what_another_release_wrote_keeps_its_bytes(fresh: Served) -> None:
    """A record without a field that has a default now: its signature is over just these bytes."""
    record = samples.record()
    written = record.model_dump(mode="json", exclude_defaults=True)
    body = canonical_json(written)
    assert body != canonical_json(record)
    signed = [
        StatementSignature(statement=item, signature=fresh.keys.sign(item))
        for item in statements(record, body)
    ]
    sent = {"records": [written], "signatures": [item.model_dump(mode="json") for item in signed]}
    with fresh.client("publish") as client:
        assert client.post("/v1/records", json=sent).status_code == 201
        answer = client.get(f"/v1/records/{record.id}").json()
    assert canonical_json(answer["record"]) == body


@pytest.mark.parametrize("spoiled", ["unsigned", "stranger", "changed", "of another record"])
def test_only_what_a_trusted_key_signed_is_taken(
    fresh: Served, spoiled: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    artifact = fresh.registry.put_artifact("compile_cache", b"compiled")
    record = samples.record(artifacts=(artifact,))
    sent = publication(fresh.keys, record)
    if spoiled == "unsigned":
        sent["signatures"] = sent["signatures"][:1]  # the artifact's is missing
    elif spoiled == "stranger":
        sent = publication(SigningKeys(tmp_path_factory.mktemp("stranger")), record)
    elif spoiled == "changed":
        sent["records"][0]["budget_bytes"] += 1
    else:
        sent["signatures"] = publication(fresh.keys, samples.record(threads=2))["signatures"]
    with fresh.client("admin") as client:
        answer = client.post("/v1/records", json=sent)
    assert (answer.status_code, answer.json()["kind"]) == (403, "UntrustedArtifact")
    assert fresh.registry.history() == ()


def test_a_damaged_list_of_trusted_keys_names_no_folder(fresh: Served) -> None:
    sent = publication(fresh.keys, samples.record())
    (key,) = fresh.folder.rglob(KEY_FILE)
    path = key.with_name(TRUST_FILE)
    path.write_text("{")
    try:
        with fresh.client("publish") as client:
            answer = client.post("/v1/records", json=sent)
    finally:
        path.unlink()
    assert (answer.status_code, answer.json()["kind"]) == (503, "TrustListUnreadable")
    assert str(fresh.folder) not in answer.text


def test_a_record_without_a_time_zone_is_none(fresh: Served) -> None:
    sent = publication(fresh.keys, samples.record())
    naive = sent["records"][0]["created_at"].removesuffix("Z")
    sent["records"][0]["created_at"] = naive
    with fresh.client("publish") as client:
        answer = client.post("/v1/records", json=sent)
    assert (answer.status_code, answer.json()["kind"]) == (422, "InvalidInput")
    assert "created_at" in answer.json()["detail"]


def test_all_or_none_are_published(fresh: Served) -> None:
    lost = ArtifactRef(kind="compile_cache", sha256="c" * 64, size_bytes=3)
    records = [samples.record(), samples.record(threads=2, artifacts=(lost,))]
    with fresh.client("publish") as client:
        answer = client.post("/v1/records", json=publication(fresh.keys, *records))
    assert (answer.status_code, answer.json()["kind"]) == (409, "RegistryConflict")
    assert fresh.registry.history() == ()


def test_pages_follow_each_other(fresh: Served) -> None:
    fresh.registry.publish([samples.record(threads=n + 1) for n in range(5)], now=NOW)
    found, after = [], None
    with fresh.client() as client:
        while True:
            asked = {"limit": 2, **({"after": after} if after else {})}
            page = client.get("/v1/candidates", params=asked).json()
            found += [item["record"]["plan"]["process"]["threads"] for item in page["records"]]
            if (after := page["after"]) is None:
                break
    assert sorted(found) == [1, 2, 3, 4, 5]


def test_an_answer_that_is_known_is_not_sent_again(fresh: Served) -> None:
    fresh.registry.publish([samples.record()], now=NOW)
    with fresh.client() as client:
        first = client.get("/v1/candidates")
        known = {"if-none-match": first.headers["etag"]}
        second = client.get("/v1/candidates", headers=known)
        fresh.registry.publish([samples.record(threads=2)], now=NOW)
        third = client.get("/v1/candidates", headers=known)
    assert (second.status_code, second.content) == (304, b"")
    assert third.status_code == 200


def test_records_are_taken_out_of_service(fresh: Served) -> None:
    old, new = samples.record(), samples.record(minutes=1)
    for record in (old, new):
        fresh.registry.publish([record], now=NOW)
    with fresh.client("admin") as client:
        assert client.put(f"/v1/records/{new.id}/pin").json() == {"ids": [new.id]}
        assert client.delete(f"/v1/records/{new.id}/pin").json() == {"ids": [new.id]}
        back = client.post(f"/v1/records/{new.id[:8]}/rollback")
        assert back.json() == {"ids": [old.id]}
        gone = client.post(f"/v1/records/{old.id}/revoke", json={"reason": "black pictures"})
        assert gone.json() == {"ids": [old.id]}
        history = client.get("/v1/records", params={"model_name": "tiny-flux"}).json()["records"]
    assert [item["status"] for item in history] == ["revoked", "revoked"]
    assert fresh.registry.revoked_reason(old.id) == "black pictures"


def test_studies_and_inventories(fresh: Served) -> None:
    study = begin(fresh.registry)
    fresh.registry.add_trial(study.id, samples.trial())
    fresh.registry.publish(
        [samples.record()], now=NOW, end=StudyEnd(study.id, "finished", {"trials": 1})
    )
    inventory = samples.inventory().model_dump(mode="json")
    with fresh.client("publish") as client:
        (listed,) = client.get("/v1/studies").json()
        assert client.get(f"/v1/studies/{study.id[:8]}").json() == listed
        assert (listed["status"], listed["summary"]) == ("finished", {"trials": 1})
        (trial,) = client.get(f"/v1/studies/{study.id}/trials").json()
        assert trial == samples.trial().model_dump(mode="json")
        assert client.get("/v1/inventories", params={"key": "a:b"}).status_code == 404
        put = client.put("/v1/inventories", params={"key": "a:b"}, json=inventory)
        assert put.status_code == 204
        assert client.get("/v1/inventories", params={"key": "a:b"}).json() == inventory


def test_artifacts_come_whole_and_in_parts(fresh: Served) -> None:
    data = bytes(range(256)) * 5000
    name = hashlib.sha256(data).hexdigest()
    where = f"/v1/artifacts/{name}"
    with fresh.client("publish") as client:
        kept = client.put(where, content=data)
        whole = client.get(where)
        part = client.get(where, headers={"range": "bytes=100-199"})
        beyond = client.get(where, headers={"range": f"bytes={len(data)}-"})
        head = client.head(where)
        known = client.get(where, headers={"if-none-match": f'"{name}"'})
    assert (kept.status_code, kept.json()) == (201, {"sha256": name, "size_bytes": len(data)})
    assert whole.content == data
    assert whole.headers["etag"] == f'"{name}"'
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert beyond.status_code == 416
    assert (head.headers["content-length"], head.content) == (str(len(data)), b"")
    assert (known.status_code, known.content) == (304, b"")


def test_bytes_of_another_digest_are_not_kept(fresh: Served) -> None:
    with fresh.client("publish") as client:
        answer = client.put(f"/v1/artifacts/{'a' * 64}", content=b"other bytes")
    assert (answer.status_code, answer.json()["kind"]) == (422, "InvalidInput")
    kept = fresh.registry.path.with_name("registry.sqlite3.artifacts")
    assert [path for path in kept.rglob("*") if path.is_file()] == []


def test_a_lost_or_cut_file_is_a_miss(fresh: Served) -> None:
    ref = fresh.registry.put_artifact("log", b"said the worker")
    path = fresh.registry.artifact_path(ref)
    with fresh.client() as client:
        for spoil in (lambda: path.write_bytes(b"said"), path.unlink):
            spoil()
            answer = client.get(f"/v1/artifacts/{ref.sha256}")
            assert (answer.status_code, answer.json()["kind"]) == (404, "RecordNotFound")


def test_errors_are_problems(fresh: Served) -> None:
    with fresh.client("admin") as client:
        answers = [
            client.get(f"/v1/records/{'0' * 64}"),
            client.get("/v1/nowhere"),
            client.patch("/v1/candidates"),
            client.get("/v1/candidates", params={"limit": 10**6}),
            client.post("/v1/records", content=b"{", headers={"content-type": "application/json"}),
        ]
    assert [item.status_code for item in answers] == [404, 404, 405, 422, 422]
    for answer in answers:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code


def test_what_is_changed_and_who_is_refused_is_written_down(fresh: Served) -> None:
    record = samples.record()
    with fresh.client("publish") as client:
        client.post("/v1/records", json=publication(fresh.keys, record))
        client.post(f"/v1/records/{record.id}/revoke", json={"reason": "x"})
        client.get("/v1/records")
    changes = [json.loads(line) for line in fresh.audit().splitlines()]
    assert changes[-1] == {
        "at": fresh.now.isoformat(timespec="milliseconds"),
        "who": "publish",
        "client": "127.0.0.1",
        "method": "POST",
        "target": "/v1/records",
        "status": 201,
        "records": [record.id],
        "inventory": None,
    }
    refused = json.loads(fresh.audit("refused.jsonl").splitlines()[-1])
    assert (refused["status"], refused["target"]) == (403, f"/v1/records/{record.id}/revoke")


def test_the_audit_says_what_was_changed(fresh: Served) -> None:
    record = samples.record()
    fresh.registry.publish([record], now=NOW)
    inventory = samples.inventory().model_dump(mode="json")
    with fresh.client("admin") as client:
        client.put("/v1/inventories", params={"key": "a:b"}, json=inventory)
        client.put(f"/v1/records/{record.id}/pin")
        client.post(f"/v1/records/{record.id[:8]}/revoke", json={"reason": "black pictures"})
        client.get("/v1/records")
    changes = [json.loads(line) for line in fresh.audit().splitlines()][-3:]
    assert [item["inventory"] for item in changes] == ["a:b", None, None]
    assert [item["records"] for item in changes] == [[], [record.id], [record.id]]
