"""`tuner run` up to the study: what is asked of it, what is shown, how each ending is told."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.errors import NothingFits
from tests.tuner.cli import example_registry as example
from tests.tuner.report.events_of_a_run import EVENTS
from tuner import catalog, workplace
from tuner.cli.main import run
from tuner.detect import Detection, detect
from tuner.events import StageStarted
from tuner.foreign import FOREIGN_BYTES
from tuner.locks import DeviceLock
from tuner.request import DEFAULT_PROMPTS, DEFAULT_SEEDS, StudyOutcome, StudyRequest

ROOT = Path(__file__).parents[3]
Captured = pytest.CaptureFixture[str]
ASKED = ["run", "--model", "tiny-flux", "--vram", "2GB"]


class FakeStudy:
    """Stands for `run_study`: keeps the requests, sends the events of a short run, then ends."""

    def __init__(self, end: Callable[[], StudyOutcome]) -> None:
        self.requests: list[StudyRequest] = []
        self._end = end

    def __call__(self, request: StudyRequest, *, listener: Any, **_: object) -> StudyOutcome:
        self.requests.append(request)
        for event in EVENTS:
            listener(event)
        return self._end()


def proved() -> StudyOutcome:
    best = example.record("5f3c", example.NOW)
    return StudyOutcome("5f3c", (best.id, "other"), best, best.baseline, 2, ("a", "b"), ("a note",))


def ending(*endings: StudyOutcome | BaseException) -> FakeStudy:
    """One of them after another."""
    left = list(endings)

    def end() -> StudyOutcome:
        found = left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    return FakeStudy(end)


@pytest.fixture
def study(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeStudy:
    fake = FakeStudy(proved)
    monkeypatch.setattr("tuner.workplace.run_study", fake)
    return fake


def test_defaults_are_the_models_own(study: FakeStudy) -> None:
    assert run(ASKED) == 0
    (request,) = study.requests
    assert request.model.ref.name == "tiny-flux"
    assert request.workload.label == "64x64"
    assert (request.budget_bytes, request.host_budget_bytes) == (2 * 10**9, None)
    assert (request.policy, request.objective, request.exhaustive) == ("balanced", "latency", False)
    assert (request.prompts, request.seeds) == (DEFAULT_PROMPTS, DEFAULT_SEEDS)
    assert (request.time_limit_s, request.steps, request.share) == (None, None, False)
    assert (request.audit, request.audit_limit_s) == (0, None)


def test_a_model_that_knows_few_words_has_prompts_of_its_own(study: FakeStudy) -> None:
    assert run(["run", "--model", "shapes-flux", "--vram", "2GB"]) == 0
    (request,) = study.requests
    assert request.prompts == catalog.entry("shapes-flux").default_prompts
    assert request.prompts
    assert request.workload.label == "128x128"
    assert request.model.ref.weights == "pretrained"


def test_every_option_reaches_the_study(study: FakeStudy) -> None:
    options = "--host-memory 4GiB --steps 3 --policy strict --objective throughput --share"
    options += " --search exhaustive --time-limit 1h30m --seed 7 --seed 8 --keep-logs"
    assert run([*ASKED, *options.split(), "--prompt", "a cat", "--prompt", "a dog"]) == 0
    (request,) = study.requests
    assert request.host_budget_bytes == 4 * 2**30
    assert (request.steps, request.policy, request.objective) == (3, "strict", "throughput")
    assert (request.exhaustive, request.share, request.keep_logs) == (True, True, True)
    assert request.time_limit_s == 5400
    assert (request.prompts, request.seeds) == (("a cat", "a dog"), (7, 8))


@pytest.mark.parametrize(
    ("options", "count", "limit_s"),
    [("--audit", 20, None), ("--audit --json", 20, None), ("--audit 3 --audit-limit 5m", 3, 300)],
)
def test_an_audit_is_asked_for_with_or_without_a_number(
    study: FakeStudy, options: str, count: int, limit_s: float | None
) -> None:
    assert run([*ASKED, *options.split()]) == 0
    (request,) = study.requests
    assert (request.audit, request.audit_limit_s) == (count, limit_s)


def test_sizes_and_batches_are_one_workload(study: FakeStudy) -> None:
    sizes = ["--resolution", "128x64", "--resolution", "64x64"]
    assert run([*ASKED, *sizes, "--batch-size", "1", "--batch-size", "2"]) == 0
    (request,) = study.requests
    assert request.workload.label == "64x64, 64x64 batch 2, 128x64, 128x64 batch 2"


def test_separate_sizes_are_a_study_each(study: FakeStudy, capsys: Captured) -> None:
    sizes = ["--resolution", "128x64", "--resolution", "64x64"]
    assert run([*ASKED, *sizes, "--separate", "--json"]) == 0
    assert [request.workload.label for request in study.requests] == ["128x64", "64x64"]
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize(
    ("stop", "code"), [(NothingFits("no plan fits"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_was_published_is_told_though_a_later_size_fails(
    stop: BaseException, code: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tuner.workplace.run_study", ending(proved(), stop))
    sizes = ["--resolution", "128x64", "--resolution", "64x64"]
    assert run([*ASKED, *sizes, "--separate", "--json"]) == code
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["study"] == "5f3c"


def test_a_size_that_does_not_fit_keeps_no_other_from_its_study(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    too_large = NothingFits("too large", hint="more memory"), NothingFits("larger still")
    fake = ending(too_large[0], proved(), too_large[1])
    monkeypatch.setattr("tuner.workplace.run_study", fake)
    sizes = [word for size in ("256x256", "64x64", "512x512") for word in ("--resolution", size)]
    assert run([*ASKED, *sizes, "--separate", "--json"]) == 2
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 1
    assert (
        "Error: 2 of 3 sizes do not fit. 256x256: too large; 512x512: larger still\n"
        "Hint: more memory\n"
    ) in printed.err


def test_the_winner_is_printed_beside_the_baseline(study: FakeStudy, capsys: Captured) -> None:
    assert run(ASKED) == 0
    printed = capsys.readouterr()
    for part in ("int8-wo · regional", "bf16 · eager", "2.00×", "and 1 more", "note: a note"):
        assert part in printed.out
    assert "Not tried: 2 candidates" in printed.out
    assert "best so far" in printed.err


def test_json_is_alone_on_standard_output(study: FakeStudy, capsys: Captured) -> None:
    assert run([*ASKED, "--json"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["speedup"] == pytest.approx(2.0)
    assert outcome["best"]["plan"]["format"] == 1
    assert outcome["published"][0] == outcome["best"]["id"]


def test_nothing_proved_is_exit_code_1(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    empty = StudyOutcome("5f3c", (), None, None, 3)
    monkeypatch.setattr("tuner.workplace.run_study", FakeStudy(lambda: empty))
    assert run(ASKED) == 1
    assert "Nothing could be proved" in capsys.readouterr().out
    assert run([*ASKED, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["best"] is None


def stop() -> StudyOutcome:
    raise KeyboardInterrupt


def test_an_interruption_says_what_is_kept(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tuner.workplace.run_study", FakeStudy(stop))
    assert run(ASKED) == 130
    told = capsys.readouterr().err.splitlines()[-2:]
    assert told == [
        "Error: interrupted: 4 finished trials are kept in study 5f3c; nothing of it was published",
        "Hint: Run the same command again to continue.",
    ]


def test_an_interruption_of_the_audit_says_that_the_answer_is_out(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def stopped(_: StudyRequest, *, listener: Any, **__: object) -> StudyOutcome:
        for event in (*EVENTS, StageStarted("publish"), StageStarted("audit")):
            listener(event)
        raise KeyboardInterrupt

    monkeypatch.setattr("tuner.workplace.run_study", stopped)
    assert run([*ASKED, "--audit"]) == 130
    told = capsys.readouterr().err.splitlines()[-2:]
    assert told == [
        "Error: interrupted in its audit: the answer of study 5f3c is published",
        "Hint: Run the same command again to go on with the audit.",
    ]


def too_small() -> StudyOutcome:
    raise NothingFits("no plan fits in 1.00 MB; the smallest that would is about 66.1 MB")


def test_a_budget_in_which_nothing_fits(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tuner.workplace.run_study", FakeStudy(too_small))
    assert run(ASKED) == 2
    assert "the smallest that would is about 66.1 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vram", "24 parsecs"], "'24 parsecs'"),
        (["--vram", "24"], "'24' has no unit"),
        (["--vram", "-3GB"], "'-3GB'"),
        (["--host-memory", "lots"], "'lots'"),
        (["--batch-size", "-1"], "-1"),
        (["--batch-size", "0"], "0"),
        (["--batch-size", "1000000"], "1000000"),
        (["--resolution", "64"], "'64' is not a resolution"),
        (["--resolution", "-64x64"], "'-64x64'"),
        (["--time-limit", "8"], "'8' is not a duration"),
        (["--steps", "0"], "0"),
        (["--steps", "1001"], "1001"),
        (["--seed", "-1"], "-1"),
        (["--seed", str(2**63)], str(2**63)),
        (["--registry", ""], "''"),
        (["--registry", "://"], "://… is not a registry"),
        (["--registry", "postgresql://me:secret@host/plans"], "postgresql://me:***@host"),
        (["--policy", "sloppy"], "'sloppy'"),
        (["--objective", "beauty"], "'beauty'"),
        (["--python", "/no/such/python"], "/no/such/python"),
        (["--model", "no-such-model"], "'no-such-model'"),
        (["--colour", "red"], "--colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_named_and_starts_nothing(
    study: FakeStudy, capsys: Captured, options: list[str], told: str, home: Path
) -> None:
    assert run([*ASKED, *options]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""
    assert study.requests == []
    assert not list(home.rglob("*.sqlite3"))


def test_a_folder_that_is_no_model(study: FakeStudy, capsys: Captured, tmp_path: Path) -> None:
    assert run(["run", "--model", str(tmp_path), "--vram", "2GB"]) == 2
    assert f"{tmp_path} has no model_index.json" in capsys.readouterr().err


def test_a_path_with_spaces_and_letters_of_all_kinds(study: FakeStudy, tmp_path: Path) -> None:
    folder = tmp_path / "größe mit leer 模型"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    path = folder / "pläne.db"
    asked = ["--vram", "2GB", "--resolution", "64x64", "--registry", str(path)]
    assert run(["run", "--model", str(folder), *asked]) == 0
    assert study.requests[0].model.ref.name == folder.name
    assert path.is_file()


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\0" * 100], ids=["garbage", "zeros"])
def test_a_registry_that_is_none_starts_nothing_and_stays_as_it_is(
    study: FakeStudy, capsys: Captured, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "plans.db"
    path.write_bytes(content)
    assert run([*ASKED, "--registry", str(path)]) == 4
    assert f"registry {path} is damaged or not a registry" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert study.requests == []


def test_a_newer_registry_is_not_written(
    study: FakeStudy, capsys: Captured, tmp_path: Path
) -> None:
    path = tmp_path / "plans.db"
    open_registry(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9_9_9'")
    connection.close()
    before = path.read_bytes()
    for command in (ASKED, ["registry", "upgrade"]):
        assert run([*command, "--registry", str(path)]) == 4
        assert "has schema 9_9_9, written by a newer release" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_home_that_cannot_be_written(study: FakeStudy, capsys: Captured) -> None:
    """The folder above is a file: what even root cannot write to."""
    blocked = Path(os.environ["HOME"]) / "file"
    blocked.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(blocked))
        patch.setenv("XDG_DATA_HOME", str(blocked / "share"))
        assert run(ASKED) == 4
        told = capsys.readouterr().err
        assert str(blocked) in told
        assert "--registry" in told
        assert run(["get-plan", *ASKED[1:]]) == 0
    assert study.requests == []


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(home: Path) -> None:
    """Through a real worker: what is missing, and how to do without the hub."""
    child = start(["run", "--model", "someone/else", "--vram", "2GB", "--resolution", "64x64"])
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 7
    assert "cannot get 'someone/else' from the hub" in errors
    assert "pass the folder: --model /path/to/folder" in errors
    assert "Traceback" not in errors


def test_a_hub_model_has_no_default_size(study: FakeStudy, capsys: Captured) -> None:
    assert run(["run", "--model", "someone/something", "--vram", "2GB"]) == 2
    assert "give --resolution" in capsys.readouterr().err


def test_two_runs_on_one_device(study: FakeStudy, capsys: Captured, home: Path) -> None:
    locks = home / ".local" / "share" / "tuner" / "locks"
    with DeviceLock("cpu", locks, ["tuner", "run", "--model", "other"]):
        assert run([*ASKED, "--gpu", "cpu"]) == 5
    assert "tuner run --model other" in capsys.readouterr().err
    assert study.requests == []


def test_what_is_asked_wrongly_is_told_before_the_device_is_found_busy(
    study: FakeStudy, capsys: Captured, home: Path
) -> None:
    locks = home / ".local" / "share" / "tuner" / "locks"
    with DeviceLock("cpu", locks, ["tuner", "run", "--model", "other"]):
        assert run([*ASKED, "--gpu", "cpu", "--resolution", "65x64"]) == 2
    told = capsys.readouterr().err
    assert "65x64 cannot be made by tiny-flux" in told
    assert "The nearest size is 64x64." in told
    assert not list(home.rglob("*.sqlite3"))


def test_a_device_in_use_is_refused_without_share(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def crowded(*args: Any, **options: Any) -> Detection:
        return replace(detect(*args, **options), foreign_bytes=FOREIGN_BYTES)

    monkeypatch.setattr(workplace, "detect", crowded)
    assert run(ASKED) == 5
    assert "other processes hold 1.07 GB" in capsys.readouterr().err
    assert run([*ASKED, "--share"]) == 0
    assert len(study.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_real_run_is_stopped_and_nothing_is_half_done(home: Path, sent: int) -> None:
    path = home / "plans.db"
    child = start([*ASKED, "--registry", str(path)])
    wait_for(child, r"trial 1 ")
    child.send_signal(sent)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert re.search(r"kept in study [0-9a-f]{12}; nothing of it was published", errors)
    assert "again to continue" in errors
    assert "Traceback" not in errors
    registry = open_registry(path, create=False)
    assert [study.status for study in registry.studies()] == ["interrupted"]
    assert registry.history() == ()
    assert not workers_of(home)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from tuner.cli.main import main; main()", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(child: subprocess.Popen[str], pattern: str) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        if re.search(pattern, line):
            return
    pytest.fail(f"the run ended before it said {pattern!r}")


def workers_of(home: Path) -> list[str]:
    """Folders of processes that work in this test's home, after a moment to be reaped."""
    deadline_s = time.monotonic() + 5
    while (found := working_in(home)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return found


def working_in(home: Path) -> list[str]:
    folders = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            folders.append(str((entry / "cwd").readlink()))
    return [folder for folder in folders if folder.startswith(str(home))]
