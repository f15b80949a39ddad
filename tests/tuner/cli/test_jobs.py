"""The queue from the command line: ask, look, steer."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.errors import InvalidInput, RecordNotFound, UnknownModel
from registry.job_queue import JobQueue
from tests.registry.samples import NOW
from tuner.cli.main import run
from tuner.config import load_settings
from tuner.daemon.job_logs import job_log

Captured = pytest.CaptureFixture[str]
ASKED = ["enqueue", "--model", "tiny-flux", "--vram", "2GB"]


@pytest.fixture
def queue(home: Path, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    path = home / "registry.sqlite3"
    monkeypatch.setenv("TUNER_REGISTRY", str(path))
    return open_registry(path).jobs


def said(capsys: Captured, *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_question_is_enqueued_as_it_was_asked(queue: JobQueue, capsys: Captured) -> None:
    options = "--host-memory 4GiB --policy strict --objective throughput --time-limit 5m --steps 3"
    options += " --resolution 128x64 --batch-size 2 --gpu GPU-1 --priority 7"
    assert run([*ASKED, *options.split()]) == 0
    assert capsys.readouterr().out == "job 1 is enqueued\n"
    job = queue.get(1)
    key = job.body.key
    assert (key.model, key.ref.weights, key.workload.label) == (
        "tiny-flux",
        "random",
        "128x64 batch 2",
    )
    assert (key.budget_bytes, key.host_budget_bytes) == (2 * 10**9, 4 * 2**30)
    assert (key.policy, key.objective, key.selector) == ("strict", "throughput", "GPU-1")
    assert (job.body.time_limit_s, job.body.steps, job.priority) == (300.0, 3, 7)


def test_asked_twice_it_is_one_job(queue: JobQueue, capsys: Captured) -> None:
    assert said(capsys, *ASKED) == {"job": 1, "new": True, "status": "queued"}
    assert said(capsys, *ASKED) == {"job": 1, "new": False, "status": "queued"}
    assert run(ASKED) == 0
    assert capsys.readouterr().out == "job 1 is queued already\n"


def test_an_interpreter_is_named_by_its_whole_path(
    queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    assert run([*ASKED, "--python", "python"]) == 0
    assert queue.get(1).body.key.python == str(python)


def test_what_no_daemon_could_do_is_refused(queue: JobQueue) -> None:
    assert run(["enqueue", "--model", "no-such", "--vram", "2GB"]) == UnknownModel.exit_code
    assert run([*ASKED, "--python", "/no/such/python"]) == InvalidInput.exit_code
    assert run([*ASKED, "--gpu", "0"]) == InvalidInput.exit_code, "an index says nothing elsewhere"
    assert queue.list() == ()


def test_status_shows_what_is_open(queue: JobQueue, capsys: Captured) -> None:
    for budget in ("2GB", "3GB"):
        run(["enqueue", "--model", "tiny-flux", "--vram", budget])
    run(["cancel", "1"])
    capsys.readouterr()
    shown = said(capsys, "status")
    assert [job["id"] for job in shown["jobs"]] == [2]
    assert shown["counts"] == {"cancelled": 1, "queued": 1}
    assert [job["id"] for job in said(capsys, "status", "--all")["jobs"]] == [2, 1]
    assert run(["status"]) == 0
    out = capsys.readouterr().out
    assert "3.00 GB" in out
    assert "Jobs: 1 cancelled, 1 queued" in out
    assert run(["status", "1"]) == 0
    assert "cancelled by the user" in capsys.readouterr().out


def test_an_empty_queue(queue: JobQueue, capsys: Captured) -> None:
    assert run(["status"]) == 0
    assert capsys.readouterr().out == "Jobs: none\n"


def test_jobs_and_the_queue_are_paused_and_resumed(queue: JobQueue, capsys: Captured) -> None:
    run(ASKED)
    assert run(["pause", "1"]) == 0
    assert queue.get(1).status == "paused"
    assert run(["resume", "1"]) == 0
    assert queue.get(1).status == "queued"
    assert run(["pause"]) == 0
    capsys.readouterr()
    assert said(capsys, "status")["paused_since"] is not None
    assert run(["status"]) == 0
    assert "The queue is paused since" in capsys.readouterr().out
    assert run(["resume"]) == 0
    assert queue.paused_since() is None


def test_a_job_that_is_not_there_or_has_ended(queue: JobQueue, capsys: Captured) -> None:
    for command in ("cancel", "pause", "resume", "logs"):
        assert run([command, "9"]) == RecordNotFound.exit_code
    run(ASKED)
    queue.cancel(1, now=NOW)
    for command in ("pause", "resume"):
        assert run([command, "1"]) == InvalidInput.exit_code
    assert "it cannot be resumed" in capsys.readouterr().err


def test_logs_are_printed_from_the_end(queue: JobQueue, home: Path, capsys: Captured) -> None:
    run(ASKED)
    assert run(["logs", "1"]) == RecordNotFound.exit_code
    assert "has no log on this machine" in capsys.readouterr().err
    log = job_log(load_settings(), 1)
    log.parent.mkdir(parents=True)
    log.write_text("first\nsecond\nthird\n")
    assert run(["logs", "1", "--tail", "2"]) == 0
    assert capsys.readouterr().out == "second\nthird\n"


def test_a_growing_log_is_followed_until_the_job_has_ended(
    queue: JobQueue, home: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ASKED)
    log = job_log(load_settings(), 1)
    log.parent.mkdir(parents=True)
    log.write_text("first\n")
    more = iter(["second\n", "third\n"])

    def meanwhile(_seconds: float) -> None:
        with log.open("a") as file:
            file.write(next(more))
        if (queue.counts(), log.read_text().count("\n")) == ({"queued": 1}, 3):
            queue.cancel(1, now=NOW)

    monkeypatch.setattr(time, "sleep", meanwhile)
    capsys.readouterr()
    assert run(["logs", "1", "--follow"]) == 0
    assert capsys.readouterr().out == "first\nsecond\nthird\n"


def test_a_daemon_without_its_extra_says_what_to_install(
    queue: JobQueue, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "apscheduler"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("tuner.daemon.daemon", "tuner.daemon.ticks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "apscheduler", None)
    assert run(["daemon", "--once"]) == InvalidInput.exit_code
    assert "pip install 'diffusion-tuner[daemon]'" in capsys.readouterr().err
