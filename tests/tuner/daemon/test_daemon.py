"""`tuner daemon` with real processes: it works, stops, and meets others."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter

import pytest

from registry.errors import DeviceBusy
from tests.tuner.daemon.machine import DaemonMachine
from tuner.clock import SystemClock
from tuner.detect import detect
from tuner.locks import DeviceLock
from tuner.matching import device_kind

STOP_S = 15.0
Daemon = subprocess.Popen[str]


def test_jobs_are_worked_off(machine: DaemonMachine) -> None:
    low, high = machine.enqueue(0), machine.enqueue(1, priority=5)
    said = machine.once()
    assert [int(number) for number in re.findall(r"job started job=(\d+)", said)] == [
        high.id,
        low.id,
    ]
    for job in machine.jobs.list():
        assert (job.status, job.attempts, job.failures) == ("done", 1, 0)
        assert "published" in (job.message or "")
        assert machine.registry.study(job.study_id or "").status == "finished"
    published = Counter(stored.record.study for stored in machine.registry.history())
    assert set(published) == {job.study_id for job in machine.jobs.list()}
    machine.assert_tidy()


def test_what_was_answered_meanwhile_is_not_tuned_again(machine: DaemonMachine) -> None:
    """An app's miss, while the same question of a user waited for any daemon."""
    machine.enqueue()
    kind = device_kind(detect("cpu").environment.hardware)
    miss = machine.question(selector=kind).model_copy(update={"reason": "miss"})
    machine.jobs.enqueue(miss, priority=0, now=SystemClock().now())
    machine.once()
    assert machine.jobs.counts() == {"done": 2}
    missed, asked = machine.jobs.list()
    assert "published" in (asked.message or "")
    assert "answered meanwhile by record" in (missed.message or "")
    assert len(machine.registry.studies()) == 1


def test_a_job_that_fails_says_why_and_waits(machine: DaemonMachine) -> None:
    machine.bench.rule({"failure": "error"}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    machine.once()
    job = machine.jobs.get(job.id)
    assert (job.status, job.failures) == ("queued", 1)
    assert "no baseline" in (job.message or "") or "as the table says" in (job.message or "")
    assert job.available_at > SystemClock().now()


def test_a_question_that_nothing_can_answer_is_not_repeated(machine: DaemonMachine) -> None:
    body = machine.question()
    key = body.key.model_copy(update={"budget_bytes": 1000})
    body = body.model_copy(update={"key": key})
    job, _ = machine.jobs.enqueue(body, priority=0, now=SystemClock().now())
    machine.once()
    assert machine.jobs.get(job.id).status == "failed"
    assert machine.jobs.get(job.id).failures == 1


def test_sigterm_hands_the_job_back(machine: DaemonMachine) -> None:
    machine.bench.rule({"takes_s": 60.0}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    daemon = machine.start()
    machine.wait_for_trial()
    daemon.terminate()
    _, err = daemon.communicate(timeout=STOP_S)
    assert daemon.returncode == 0, err
    job = machine.jobs.get(job.id)
    assert (job.status, job.attempts, job.failures) == ("queued", 0, 0)
    assert not machine.at_work()
    machine.bench.rules.clear()
    machine.bench.write_table()
    machine.once()
    assert machine.jobs.get(job.id).status == "done"


def test_a_second_daemon_on_the_device_says_so_and_ends(machine: DaemonMachine) -> None:
    first = machine.start("--log-format", "json")
    try:
        assert json.loads(next(iter(first.stderr or ())))["event"] == "daemon ready"
        second = machine.start()
        _, err = second.communicate(timeout=30)
        assert second.returncode == DeviceBusy.exit_code
        assert f"process {first.pid}" in err
    finally:
        first.terminate()
        first.communicate(timeout=30)


def test_a_cancelled_job_is_stopped(machine: DaemonMachine) -> None:
    machine.bench.rule({"takes_s": 60.0}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    daemon = machine.start()
    try:
        machine.wait_for_trial()
        machine.jobs.cancel(job.id, now=SystemClock().now())
        machine.wait_for(lambda: not machine.at_work())
        assert machine.jobs.get(job.id).status == "cancelled"
        assert daemon.poll() is None
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert machine.registry.history() == ()


def test_a_run_by_hand_goes_before(machine: DaemonMachine) -> None:
    """The device is the user's: the job waits, and it is no failure of it."""
    job = machine.enqueue()
    with DeviceLock("cpu", machine.settings.locks_dir, ["tuner", "run", "by", "hand"]):
        machine.once()
    job = machine.jobs.get(job.id)
    assert (job.status, job.attempts, job.failures) == ("queued", 0, 0)
    assert "by hand" in (job.message or "")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_daemon_ends_at_once(machine: DaemonMachine, sent: int) -> None:
    daemon = machine.start()
    assert "daemon ready" in next(iter(daemon.stderr or ()))
    daemon.send_signal(sent)
    _, err = daemon.communicate(timeout=5)
    assert daemon.returncode == 0, err
    assert "Traceback" not in err


def test_the_configuration_is_read_again_and_refused_if_it_is_wrong(
    machine: DaemonMachine,
) -> None:
    config = machine.home / "config" / "config.toml"
    daemon = machine.start()
    lines = iter(daemon.stderr or ())
    try:
        next(line for line in lines if "daemon ready" in line)
        config.write_text('[daemon]\nnice = "very"\n')
        daemon.send_signal(signal.SIGHUP)
        refused = next(line for line in lines if "configuration" in line)
        assert "configuration refused; the one before stays" in refused
        assert "daemon.nice" in refused
        config.write_text('[daemon]\nquiet_hours = ["00:00-00:00"]\nport = 0\n')
        daemon.send_signal(signal.SIGHUP)
        assert "another port takes a new start" in next(line for line in lines if "port" in line)
        assert "configuration read" in next(line for line in lines if "configuration" in line)
        assert "outside of the quiet hours" in next(line for line in lines if "waiting" in line)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert daemon.returncode == 0
