"""`tuner profile`: what it looks at, what it refuses, and one real profile from start to end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from registry.client import open_registry
from registry.errors import InvalidInput, InvalidPlan, RecordNotFound
from registry.record import ArtifactRef
from tests.tuner.cli import example_registry as example
from tests.tuner.flux import h200, shipped
from tests.tuner.pipeline.tiny import plan
from tuner.cli.main import run
from tuner.cli.subjects import Question, predicted_baseline, read_plan, subject_of
from tuner.config import Settings
from tuner.detect import detect
from tuner.locks import DeviceLock
from tuner.models import resolve_model
from tuner.profiling import PROFILED, Subject
from tuner.shapes import workload_of

Captured = pytest.CaptureFixture[str]


def question(**changes: object) -> Question:
    asked: dict[str, object] = {
        "record": None,
        "plan_path": None,
        "model": None,
        "budget_bytes": None,
        "resolution": None,
        "batch_size": 1,
        "weights": "pretrained",
        "revision": None,
        "gpu": "cpu",
        "registry_url": None,
    }
    return Question(**(asked | changes))  # type: ignore[arg-type]


def asked_of(home: Path, **changes: object) -> Subject:
    settings = Settings(str(home / "plans.db"), home, home, home)
    return subject_of(question(**changes), settings, detect("cpu", settings=settings))


def test_a_record_brings_its_plan_model_and_budget(home: Path) -> None:
    _, _, (older, _) = example.make(home / "plans.db")
    found = asked_of(home, record=older[:12])
    assert (found.plan, found.workload) == (example.WINNER, example.WORKLOAD)
    assert (found.shape, found.budget_bytes) == (example.WORKLOAD.shapes[0], 2 * 10**9)
    assert found.model == resolve_model("tiny-flux")
    assert asked_of(home, record=older[:12], budget_bytes=5).budget_bytes == 5


def test_a_record_serves_its_own_sizes_alone(home: Path) -> None:
    _, _, (older, _) = example.make(home / "plans.db")
    with pytest.raises(InvalidInput, match="serves no 128x128"):
        asked_of(home, record=older, resolution=(128, 128))


def test_a_record_of_a_folder_does_not_know_where_it_lies(home: Path) -> None:
    registry, study, _ = example.make(home / "plans.db")
    local = example.MODEL.model_copy(update={"source": "local", "name": "my-flux"})
    made = example.record(study, example.NOW, model=local, architecture="c" * 64)
    registry.publish([made], now=example.NOW)
    with pytest.raises(InvalidInput, match="my-flux") as error:
        asked_of(home, record=made.id)
    assert "--model" in str(error.value)
    assert asked_of(home, record=made.id, model="tiny-flux").model.ref.name == "tiny-flux"


def test_an_unknown_record_is_named(home: Path) -> None:
    example.make(home / "plans.db")
    with pytest.raises(RecordNotFound, match="abcdef"):
        asked_of(home, record="abcdef")


def test_without_a_record_it_is_what_get_plan_answers(home: Path) -> None:
    found = asked_of(home, model="tiny-flux", budget_bytes=2 * 10**9, resolution=(128, 64))
    assert found.shape.label == "128x64"
    assert found.plan.pipeline.component("transformer").compilation.scope != "none"


def test_a_file_holds_a_plan_or_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    chosen = plan()
    path.write_text(chosen.model_dump_json())
    assert read_plan(path) == chosen
    path.write_text(json.dumps({"match": "exact", "plan": chosen.model_dump(mode="json")}))
    assert read_plan(path) == chosen
    path.write_text("{")
    with pytest.raises(InvalidPlan, match=r"plan\.json is not JSON"):
        read_plan(path)
    path.write_text("[]")
    with pytest.raises(InvalidPlan):
        read_plan(path)


def test_the_baseline_is_the_first_placement_that_fits() -> None:
    workload = workload_of([(1024, 1024)], [1])
    spec, inventory = resolve_model("flux-dev", weights="random"), shipped("flux-dev")

    def kind(budget_bytes: int) -> str:
        subject = Subject(spec, plan(), workload, workload.shapes[0], budget_bytes)
        chosen = predicted_baseline(subject, inventory, h200())
        return chosen.pipeline.component("transformer").placement.kind

    assert kind(80 * 10**9) == "resident"
    assert kind(30 * 10**9) == "model_offload"
    assert kind(10 * 10**9) == "group_offload"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "name a RECORD"),
        (["--plan", "PLAN"], "give --model"),
        (["abcd", "--plan", "PLAN"], "not both"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "tiny-flux", "--resolution", "65x64"], "65x64 cannot be made"),
        (["--model", "tiny-flux", "--steps", "0"], "0"),
    ],
)
def test_bad_input_is_named_and_starts_nothing(
    home: Path, capsys: Captured, options: list[str], told: str
) -> None:
    path = home / "plan.json"
    path.write_text(plan().model_dump_json())
    given = [str(path) if item == "PLAN" else item for item in options]
    assert run(["profile", "--gpu", "cpu", *given]) == 2
    assert told in capsys.readouterr().err
    assert not list(home.rglob("*.sqlite3"))


def test_a_device_in_use_is_not_profiled(home: Path, capsys: Captured) -> None:
    locks = home / ".local" / "share" / "tuner" / "locks"
    with DeviceLock("cpu", locks, ["tuner", "run"]):
        assert run(["profile", "--gpu", "cpu", "--model", "tiny-flux"]) == 5
    assert "tuner run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_profile_is_printed_kept_and_written(home: Path, capsys: Captured) -> None:
    path, database = home / "plan.json", str(home / "plans.db")
    path.write_text(plan().model_dump_json())
    trace_path = home / "trace.json"
    asked = ["profile", "--gpu", "cpu", "--model", "tiny-flux", "--plan", str(path), "--json"]
    asked += ["--registry", database, "--trace", str(trace_path), "--steps", "2"]
    assert run(asked) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["plan_digest"] == plan().digest
    assert found["steps"] == 2
    assert sum(item["share"] for item in found["parts"]) == pytest.approx(1.0)
    assert any("matrix multiplication" in sentence for sentence in found["findings"])

    registry = open_registry(database, create=False)
    (study,) = registry.studies()
    (trial,) = registry.trials(study.id)
    assert (study.id, study.status) == (found["study"], "finished")
    assert trial.measurement is not None
    assert PROFILED in (trial.measurement.contaminated or "")
    assert trial.log == ArtifactRef.model_validate(found["trace"])
    assert trial.log.kind == "profile"
    kept = gzip.decompress(registry.read_artifact(trial.log))
    assert kept == trace_path.read_bytes()
    assert json.loads(kept)["traceEvents"]
    assert registry.check() == []
    assert run(["show", study.id[:12], "--registry", database]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "matrix multiplication" in printed, "wherever its line was broken"
