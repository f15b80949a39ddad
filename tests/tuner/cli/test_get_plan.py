"""`tuner get-plan`: formats, exit codes, and that it loads nothing it does not need."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tuner
from registry.client import open_registry
from registry.errors import NoPlan
from registry.plan import parse_plan
from registry.sqlite_database import open_database
from tests.tuner.cli import example_registry as example
from tuner import catalog
from tuner.cli.main import run
from tuner.config import load_settings
from tuner.detect import detect
from tuner.locks import daemon_lock
from tuner.matching import device_kind

ROOT = Path(__file__).parents[3]
Captured = pytest.CaptureFixture[str]
ASKED = ["get-plan", "--model", "tiny-flux", "--vram", "2GB", "--gpu", "cpu"]
HEAVY = {"torch", "diffusers", "transformers", "torchao", "alembic", "rich", "apscheduler"}


@pytest.fixture
def path(tmp_path: Path, home: Path) -> Path:
    """A registry with one plan that was proved on this very machine."""
    made = tmp_path / "plans.db"
    inventory = catalog.shipped_inventory("tiny-flux")
    assert inventory is not None
    record = example.record(
        "study",
        example.NOW,
        proved_on=detect("cpu").environment,
        architecture=inventory.architecture,
        weights=inventory.weights,
    )
    open_registry(made).publish([record], now=example.NOW)
    return made


def answer(path: Path, capsys: Captured, *options: str, code: int = 0) -> str:
    """Standard output; standard error where the exit code is not 0."""
    assert run([*ASKED, "--registry", str(path), *options]) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def test_json_says_match_plan_measurement_and_record(path: Path, capsys: Captured) -> None:
    found: dict[str, Any] = json.loads(answer(path, capsys))
    assert found["match"] == "exact"
    assert parse_plan(found["plan"]) == example.WINNER
    assert found["measurement"]["shapes"][0]["step_ms"] == 5.0
    assert found["record"]["quality"]["passed"]


def test_yaml_says_the_same(path: Path, capsys: Captured) -> None:
    as_yaml = yaml.safe_load(answer(path, capsys, "--format", "yaml"))
    as_json = json.loads(answer(path, capsys))
    assert as_yaml["plan"] == as_json["plan"]
    assert as_yaml["measurement"] == as_json["measurement"]


def test_python_is_a_script_without_any_import_of_ours(path: Path, capsys: Captured) -> None:
    tree = ast.parse(answer(path, capsys, "--format", "python"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {"torch", "diffusers"} <= imported
    assert not imported & {"tuner", "registry"}


def test_the_fetch_is_counted_after_the_answer(path: Path, capsys: Captured) -> None:
    first = json.loads(answer(path, capsys))
    second = json.loads(answer(path, capsys))
    assert (first["record"]["fetches"], second["record"]["fetches"]) == (0, 1)


def test_strict_is_exit_code_3_without_an_exact_match(path: Path, capsys: Captured) -> None:
    assert json.loads(answer(path, capsys, "--strict"))["match"] == "exact"
    told = answer(path, capsys, "--strict", "--resolution", "128x128", code=3)
    assert told.startswith("Error: ")


def test_without_a_registry_the_answer_is_estimated(home: Path, capsys: Captured) -> None:
    assert run(ASKED) == 0
    assert json.loads(capsys.readouterr().out)["match"] == "estimated"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--vram", "24 parsecs"], 2, "'24 parsecs'"),
        (["--vram", "1KB"], 2, "1.00 KB"),
        (["--batch-size", "-1"], 2, "-1"),
        (["--resolution", "64x63"], 2, "64x63"),
        (["--model", "no-such-model"], 2, "'no-such-model'"),
        (["--model", "a/b", "--resolution", "64x64"], 3, "a/b"),
        (["--format", "xml"], 2, "'xml'"),
        (["--batch-size", "1000000"], 2, "1000000"),
        (["--registry", "ftp://example.org/plans"], 2, "ftp://example.org/plans"),
        (["--registry", ""], 2, "''"),
        (["--gpu", "77"], None, "'77'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_bad_input_is_named(
    path: Path, capsys: Captured, options: list[str], code: int | None, told: str
) -> None:
    ended = run([*ASKED, "--registry", str(path), *options])
    printed = capsys.readouterr()
    assert ended == code if code is not None else ended in {2, 5}
    assert told in printed.err
    assert printed.out == ""


def test_a_damaged_registry_is_exit_code_4(path: Path, capsys: Captured) -> None:
    path.write_bytes(b"garbage" * 1000)
    assert str(path) in answer(path, capsys, code=4)


@pytest.mark.parametrize("registry", ["proved", "none"])
def test_nothing_heavy_is_loaded(path: Path, registry: str, tmp_path: Path) -> None:
    where = path if registry == "proved" else tmp_path / "none.db"
    code = (
        "import json, sys\n"
        "from tuner.cli.main import run\n"
        "code = run(sys.argv[1:])\n"
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]),"
        " file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, *ASKED, "--registry", str(where)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    ended, loaded = json.loads(child.stderr.splitlines()[-1])
    assert ended == 0
    assert "sqlalchemy" in loaded
    assert not HEAVY & set(loaded)
    assert json.loads(child.stdout)["match"] == ("exact" if registry == "proved" else "estimated")


def test_a_miss_becomes_a_job_where_it_is_wanted(path: Path, capsys: Captured) -> None:
    other = ("--resolution", "128x128")
    jobs = open_registry(path).jobs
    assert run([*ASKED, "--registry", str(path), "--enqueue-on-miss"]) == 0
    assert jobs.list() == (), "an exact answer is no miss"
    assert run([*ASKED, "--registry", str(path), *other]) == 0
    assert jobs.list() == (), "no daemon serves the device"
    capsys.readouterr()
    for _ in range(2):
        assert run([*ASKED, "--registry", str(path), *other, "--enqueue-on-miss"]) == 0
    printed = capsys.readouterr()
    assert "enqueued: job 1 will prove a plan here" in printed.err
    assert printed.out.count('"match": "resolution"') == 2
    (job,) = jobs.list()
    assert (job.body.reason, job.body.key.workload.label) == ("miss", "128x128")
    assert job.body.key.selector == device_kind(detect("cpu").environment.hardware)


def test_a_daemon_makes_it_the_default(path: Path, home: Path) -> None:
    asked = [*ASKED, "--registry", str(path), "--strict", "--resolution", "128x128"]
    jobs = open_registry(path).jobs
    with daemon_lock("cpu", load_settings().locks_dir, (sys.executable, "tuner", "daemon")):
        assert run([*asked, "--no-enqueue-on-miss"]) == NoPlan.exit_code
        assert jobs.list() == ()
        assert run(asked) == NoPlan.exit_code
    (job,) = jobs.list()
    assert job.body.key.python is None, "the daemon has this very interpreter"


def test_an_app_is_tuned_for_in_its_own_interpreter(path: Path, home: Path) -> None:
    with daemon_lock("cpu", load_settings().locks_dir, ("/daemons/own/python", "tuner")):
        tuner.get_plan("tiny-flux", vram="2GB", height=128, width=128, registry=path, gpu="cpu")
    (job,) = open_registry(path).jobs.list()
    assert job.body.key.python == sys.executable


def test_a_miss_that_cannot_be_kept_is_no_error(path: Path, home: Path) -> None:
    with open_database(path, create=False).write():
        asked = [*ASKED, "--registry", str(path), "--resolution", "128x128"]
        assert run([*asked, "--enqueue-on-miss"]) == 0
    assert open_registry(path).jobs.list() == ()
