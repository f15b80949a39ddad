"""get-plan over HTTP: the same answers as the command's, for this machine and for others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.environment import Environment
from registry.record import TuningRecord
from registry.server.memory import Fetches
from tests.registry.server.serving import Served, served
from tests.tuner.cli import example_registry as example
from tuner import catalog
from tuner.answers import get_plan
from tuner.cli.main import run
from tuner.config import load_settings
from tuner.detect import Detection, detect
from tuner.serving import LOOK_AGAIN_S, PlanRoutes

TUNED = ["--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64"]
ASKED = {"model": "tiny-flux", "vram": "2GB", "resolution": "64x64"}


def proved_on(environment: Environment) -> TuningRecord:
    inventory = catalog.shipped_inventory("tiny-flux")
    assert inventory is not None
    return example.record(
        "study",
        example.NOW,
        proved_on=environment,
        architecture=inventory.architecture,
        weights=inventory.weights,
    )


@pytest.fixture(scope="module")
def record() -> TuningRecord:
    return proved_on(detect("cpu").environment)


@pytest.fixture(scope="module")
def service(record: TuningRecord, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    registry = open_registry(folder / "registry.sqlite3")
    registry.publish([record], now=example.NOW)
    settings = replace(load_settings({"TUNER_HOME": str(folder)}), hub_cache_dir=folder / "hub")
    routes = PlanRoutes(registry, settings, Fetches(registry, every_s=0)).router()
    with served(folder / "registry.sqlite3", folder, more=(routes,)) as found:
        yield found


def test_the_serving_machine_is_answered_as_by_the_command(
    service: Served, record: TuningRecord, home: Path
) -> None:
    with service.client() as client:
        answer = client.get("/v1/plan", params={**ASKED, "gpu": "cpu"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert (found["match"], found["record"]["id"]) == ("exact", record.id)
    told = get_plan(
        "tiny-flux", vram="2GB", height=64, width=64, gpu="cpu", registry=service.registry.path
    )
    assert found["plan"] == told.plan.model_dump(mode="json")
    assert service.registry.record(record.id).fetches == 2


def test_another_machine_says_what_it_is(service: Served, record: TuningRecord) -> None:
    here = detect("cpu").environment
    newer = here.model_copy(update={"runtime": here.runtime.model_copy(update={"torch": "2.99.0"})})
    matches = []
    with service.client() as client:
        for environment in (here, newer):
            there = environment.model_dump(mode="json")
            body = {**ASKED, "resolution": ["64x64"], "environment": there}
            answer = client.post("/v1/plan", json=body).json()
            assert answer["record"]["id"] == record.id
            matches.append(answer["match"])
    assert matches == ["exact", "stale"]


def test_an_app_fetches_its_plan_from_a_service(
    service: Served, record: TuningRecord, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_REGISTRY", service.url)
    monkeypatch.setenv("TUNER_REGISTRY_TOKEN", service.secrets["read"])
    answer = get_plan("tiny-flux", vram="2GB", height=64, width=64, gpu="cpu")
    assert (answer.match, answer.record_id) == ("exact", record.id)
    assert "TUNER_REGISTRY_TOKEN" not in load_settings().environ
    assert run(["run", *TUNED, "--gpu", "cpu"]) == 4


def test_a_plan_that_was_fetched_is_there_without_the_service(
    record: TuningRecord, home: Path, tmp_path: Path
) -> None:
    open_registry(tmp_path / "registry.sqlite3").publish([record], now=example.NOW)
    with served(tmp_path / "registry.sqlite3", tmp_path) as found:
        asked = {"vram": "2GB", "height": 64, "width": 64, "gpu": "cpu", "registry": found.url}
        first = get_plan("tiny-flux", **asked)  # type: ignore[arg-type]
        assert not any("did not answer" in note for note in first.notes)
    again = get_plan("tiny-flux", **asked)  # type: ignore[arg-type]
    assert (again.match, again.plan) == ("exact", first.plan)
    assert any("did not answer" in note for note in again.notes)


@pytest.mark.parametrize(
    ("asked", "status", "kind"),
    [
        ({"model": "no-such-model"}, 422, "UnknownModel"),
        ({"vram": "2"}, 422, "InvalidInput"),
        ({"vram": "1MB"}, 422, "NothingFits"),
        ({"resolution": "63x64"}, 422, "InvalidInput"),
        ({"gpu": "no such GPU"}, 422, "DeviceError"),
        ({"resolution": "128x128", "strict": "true"}, 404, "NoPlan"),
        ({"model": "some/model"}, 404, "NoPlan"),
        ({"revision": "../../../../dev/zero", "model": "some/model"}, 422, "InvalidInput"),
        ({"revision": "/dev/zero", "model": "some/model"}, 422, "InvalidInput"),
    ],
)
def test_what_has_no_answer(service: Served, asked: dict[str, str], status: int, kind: str) -> None:
    with service.client() as client:
        answer = client.get("/v1/plan", params={"gpu": "cpu", **ASKED, **asked})
    assert (answer.status_code, answer.json()["kind"]) == (status, kind)


def test_no_folder_of_the_serving_machine_is_a_model(
    service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with service.client() as client:
        for name in (str(tmp_path), "some", ".", "~"):
            answer = client.get("/v1/plan", params={**ASKED, "gpu": "cpu", "model": name})
            assert (answer.status_code, answer.json()["kind"]) == (422, "UnknownModel")
        hub = client.get("/v1/plan", params={**ASKED, "gpu": "cpu", "model": "some/model"})
    assert hub.json()["kind"] == "NoPlan"


def test_the_machine_is_looked_at_now_and_then(tmp_path: Path) -> None:
    now_s, looked = 0.0, []

    def look(gpu: str | None) -> Detection:
        looked.append(gpu)
        return detect("cpu")

    settings = load_settings({"TUNER_HOME": str(tmp_path)})
    registry = open_registry(tmp_path / "registry.sqlite3")
    routes = PlanRoutes(registry, settings, Fetches(registry), monotonic_s=lambda: now_s, look=look)
    for now_s in (0.0, LOOK_AGAIN_S, LOOK_AGAIN_S + 1):  # noqa: B007 (read by the clock)
        routes._detection(None)
    for gpu in ("cpu", None, "cpu"):
        routes._detection(gpu)
    assert looked == [None, None, "cpu"]
