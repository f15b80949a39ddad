"""Daemons on GPUs that others use too; real processes, the driver's library alone is made up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tuner.daemon.machine import CONFIG, DaemonMachine, link
from tests.tuner.daemon.two_gpus import UUIDS, TwoGpus
from tuner.clock import SystemClock

JOBS = 4
GIB = 2**30


@pytest.fixture
def gpus(machine: DaemonMachine, tmp_path: Path) -> TwoGpus:
    made = TwoGpus(tmp_path / "gpus")
    machine.environ["PYTHONPATH"] = f"{made.folder}:{machine.environ['PYTHONPATH']}"
    machine.environ.pop("CUDA_VISIBLE_DEVICES", None)
    idle = '[daemon.idle]\nwindow = "300ms"\n'
    (machine.home / "config" / "config.toml").write_text(CONFIG + idle)
    return made


@contextmanager
def running(machine: DaemonMachine, *gpus: str) -> Iterator[list[subprocess.Popen[str]]]:
    daemons = [machine.start(gpu=gpu) for gpu in gpus]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            daemon.terminate()
        ended = [daemon.communicate(timeout=30)[1] for daemon in daemons]
    assert [daemon.returncode for daemon in daemons] == [0] * len(daemons), ended


def test_two_daemons_share_the_jobs_of_two_gpus(machine: DaemonMachine, gpus: TwoGpus) -> None:
    machine.bench.rule({"takes_s": 0.1}, kind="trial")
    machine.bench.write_table()
    for number in range(JOBS):
        machine.enqueue(number, selector=("", UUIDS[0], UUIDS[1])[number % 3])
    seen: set[str | None] = set()
    with running(machine, "0", "1"):

        def done() -> bool:
            seen.update(job.acquired_by for job in machine.jobs.list(statuses=("running",)))
            return machine.jobs.counts().get("done") == JOBS

        machine.wait_for(done, limit_s=180.0)
    assert len(seen - {None}) == 2
    assert {job.attempts for job in machine.jobs.list()} == {1}
    finished = {row.id for row in machine.registry.studies() if row.status == "finished"}
    assert finished == {job.study_id for job in machine.jobs.list()}
    assert len(finished) == len(machine.registry.studies()) == JOBS


def test_once_waits_for_an_idle_gpu_after_each_job(machine: DaemonMachine, gpus: TwoGpus) -> None:
    """Its own jobs' load says nothing of others, so the window begins anew after each."""
    for number in range(2):
        body = machine.question(number)
        key = body.key.model_copy(update={"budget_bytes": 1000 + number})
        body = body.model_copy(update={"key": key})
        machine.jobs.enqueue(body, priority=0, now=SystemClock().now())
    daemon = machine.start("--once", gpu="0")
    _, err = daemon.communicate(timeout=60)
    assert daemon.returncode == 0, err
    assert machine.jobs.counts() == {"failed": 2}, err


@pytest.mark.parametrize("busy", ["used_bytes", "percent"])
def test_a_gpu_in_use_is_waited_for(machine: DaemonMachine, gpus: TwoGpus, busy: str) -> None:
    getattr(gpus, busy)[0] = 20 * GIB if busy == "used_bytes" else 90
    gpus.show()
    job = machine.enqueue()
    with running(machine, "0") as (daemon,):
        said = next(line for line in daemon.stderr or () if "waiting" in line)
        assert "of the device" in said
        assert machine.jobs.get(job.id).status == "queued"
        getattr(gpus, busy)[0] = 0
        gpus.show()
        machine.wait_for(lambda: machine.jobs.get(job.id).status == "done", limit_s=60.0)


def test_a_trial_gives_way_and_its_job_goes_on_later(machine: DaemonMachine, gpus: TwoGpus) -> None:
    machine.bench.rule({"takes_s": 60.0}, kind="trial", rung="denoiser")
    machine.bench.write_table()
    job = machine.enqueue()
    with subprocess.Popen(["sleep", "120"]) as stranger, running(machine, "0"):
        machine.wait_for(lambda: len(machine.bench.trial_jobs()) > 1, limit_s=60.0)
        gpus.pids[0], gpus.used_bytes[0] = [*workers(machine), stranger.pid], 4 * GIB
        gpus.show()
        machine.wait_for(lambda: machine.jobs.get(job.id).status == "queued")
        waiting = machine.jobs.get(job.id)
        assert f"process {stranger.pid} came to use the device" in (waiting.message or "")
        assert (waiting.attempts, waiting.failures) == (0, 0)
        stood = machine.kept()
        assert stood
        stranger.kill()
        gpus.pids[0], gpus.used_bytes[0] = [], 0
        gpus.show()
        machine.bench.rules.clear()
        machine.bench.write_table()
        before = machine.bench.trial_jobs()
        machine.resume(job.id)
        machine.wait_for(lambda: machine.jobs.get(job.id).status == "done", limit_s=60.0)
    assert not stood & set(machine.bench.trial_jobs() - before), "a finished trial ran again"


def workers(machine: DaemonMachine) -> list[int]:
    """Processes of trials, by the folder they work in."""
    place = str(machine.home / "cache")
    return [pid for pid in machine.at_work() if place in link(pid, "cwd")]
