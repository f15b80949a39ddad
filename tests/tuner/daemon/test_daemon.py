"""`tuner daemon` with real processes: it works, stops, is killed, and meets others."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest

from registry.errors import DeviceBusy, RegistryError
from tests.tuner.daemon.machine import CONFIG, DaemonMachine
from tuner.clock import SystemClock
from tuner.daemon.job_logs import job_log
from tuner.daemon.lease_watch import LeaseWatch
from tuner.daemon.owner import is_gone
from tuner.detect import detect
from tuner.locks import DeviceLock
from tuner.matching import device_kind

STOP_S = 15.0
GONE_S = 6.0
JOBS = 3
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


@pytest.mark.slow
def test_once_ends_where_the_registry_cannot_be_used(machine: DaemonMachine) -> None:
    """And says so once, instead of trying without a pause for ever."""
    config = machine.home / "config" / "config.toml"
    config.write_text(f'{CONFIG}\n[daemon.idle]\nwindow = "300ms"\n')
    machine.bench.rule({"takes_s": 0.5}, kind="trial")
    machine.bench.write_table()
    machine.enqueue()
    daemon = machine.start("--once")
    machine.wait_for_trial()
    away = machine.registry_path.with_name("away")
    machine.registry_path.rename(away)
    _, err = daemon.communicate(timeout=60)
    assert daemon.returncode == RegistryError.exit_code
    assert err.count("registry cannot be used") == 1
    away.rename(machine.registry_path)
    machine.assert_tidy()


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


def test_sigterm_hands_the_job_back_within_15_seconds(machine: DaemonMachine) -> None:
    machine.bench.rule({"takes_s": 60.0}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    daemon = machine.start()
    machine.wait_for_trial()
    asked_s = time.monotonic()
    daemon.terminate()
    _, err = daemon.communicate(timeout=60)
    assert time.monotonic() - asked_s < STOP_S
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
        assert min(refused_s(machine, first) for _ in range(3)) < 2.0 + import_s(machine)
    finally:
        first.terminate()
        first.communicate(timeout=30)


def refused_s(machine: DaemonMachine, first: Daemon) -> float:
    asked_s = time.monotonic()
    second = machine.start()
    _, err = second.communicate(timeout=30)
    assert second.returncode == DeviceBusy.exit_code
    assert f"process {first.pid}" in err
    return time.monotonic() - asked_s


def import_s(machine: DaemonMachine) -> float:
    """What starting this program takes on this machine at this moment."""
    begin_s = time.monotonic()
    daemon = machine.start("--help")
    daemon.communicate(timeout=30)
    return time.monotonic() - begin_s


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


def test_whose_lease_was_lost_publishes_nothing(machine: DaemonMachine) -> None:
    """The daemon is suspended and cannot stop its job, whose process goes on to the very end."""
    machine.bench.rule({"takes_s": 0.1}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    daemon = machine.start()
    machine.wait_for_trial()
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        machine.jobs.cancel(job.id, now=SystemClock().now())
        log = job_log(machine.settings, job.id)
        machine.wait_for(lambda: "no longer ours" in log.read_text(), limit_s=60.0)
        assert machine.registry.history() == ()
        (study,) = machine.registry.studies()
        assert study.status == "running", "another may go on with its trials"
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert machine.jobs.get(job.id).status == "cancelled"


def test_a_run_by_hand_goes_before(machine: DaemonMachine) -> None:
    """The device is the user's: the job waits, and it is no failure of it."""
    job = machine.enqueue()
    with DeviceLock("cpu", machine.settings.locks_dir, ["tuner", "run", "by", "hand"]):
        machine.once()
    job = machine.jobs.get(job.id)
    assert (job.status, job.attempts, job.failures) == ("queued", 0, 0)
    assert "by hand" in (job.message or "")


def test_killed_at_any_moment_every_job_is_done_once(
    soak_seed: int, machine: DaemonMachine
) -> None:
    """The daemon or the job's process, again and again; a daemon that is gone is started anew."""
    chance = random.Random(soak_seed)
    machine.bench.rule({"takes_s": 0.05}, kind="trial")
    machine.bench.write_table()
    for number in range(JOBS):
        machine.enqueue(number)
    daemon = machine.start()
    for _ in range(chance.randint(3, 6)):
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(chance.uniform(0.3, 3.0))
        kill_one(machine, daemon, chance)
        if daemon.poll() is not None:
            daemon = restarted(machine, daemon)
    machine.wait_for(lambda: forgiven(machine).get("done") == JOBS, limit_s=120.0)
    daemon.terminate()
    _, err = daemon.communicate(timeout=30)
    was_starting = daemon.returncode == -signal.SIGTERM and not err
    assert daemon.returncode == 0 or was_starting, err
    machine.assert_tidy()
    studies = machine.registry.studies()
    finished = [row.id for row in studies if row.status == "finished"]
    assert sorted(finished) == sorted(job.study_id or "" for job in machine.jobs.list())
    failed = sum(row.status == "failed" for row in studies)
    assert len(studies) == JOBS + failed, "a baseline that was killed ends its study"
    with DeviceLock("cpu", machine.settings.locks_dir) as free:
        assert free.descriptor is not None


def kill_one(machine: DaemonMachine, daemon: Daemon, chance: random.Random) -> None:
    others = machine.at_work()
    victim = chance.choice([daemon.pid, *others])
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    if victim == daemon.pid:
        daemon.wait()


def restarted(machine: DaemonMachine, daemon: Daemon) -> Daemon:
    daemon.communicate(timeout=30)
    return machine.start()


def forgiven(machine: DaemonMachine) -> dict[str, int]:
    """A job's process that was killed is a failure of the job: here it need not wait for it."""
    now = SystemClock().now()
    for job in machine.jobs.list(statuses=("queued",)):
        if job.available_at > now:
            machine.jobs.resume(job.id, now=now)
    return machine.jobs.counts()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_daemon_ends_at_once(machine: DaemonMachine, sent: int) -> None:
    daemon = machine.start()
    assert "daemon ready" in next(iter(daemon.stderr or ()))
    daemon.send_signal(sent)
    _, err = daemon.communicate(timeout=5)
    assert daemon.returncode == 0, err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_registry_that_is_gone_for_a_while_loses_no_job(machine: DaemonMachine) -> None:
    """Longer than a lease lasts here; the job's process ends, and nobody can write down how."""
    machine.bench.rule({"takes_s": 0.5}, kind="trial")
    machine.bench.write_table()
    for number in range(2):
        machine.enqueue(number)
    daemon = machine.start()
    try:
        machine.wait_for_trial()
        away = machine.registry_path.with_name("away")
        machine.registry_path.rename(away)
        said = next(line for line in daemon.stderr or () if "registry cannot be used" in line)
        assert str(machine.registry_path) in said
        time.sleep(GONE_S)
        assert daemon.poll() is None
        away.rename(machine.registry_path)
        machine.wait_for(lambda: forgiven(machine).get("done") == 2, limit_s=120.0)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert daemon.returncode == 0
    assert [job.failures for job in machine.jobs.list()] == [0, 0], "it was no fault of theirs"
    machine.assert_tidy()


@pytest.mark.slow
def test_a_full_disk_ends_no_daemon(machine: DaemonMachine) -> None:
    """No file may grow: the job's log among them, so the job cannot even say why it failed."""
    job = machine.enqueue()
    size = machine.registry_path.stat().st_size

    def full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    daemon = machine.start(preexec_fn=full_disk)
    lines = iter(daemon.stderr or ())
    next(line for line in lines if "job started" in line or "cannot be used" in line)
    next(line for line in lines if "job ended" in line or "cannot" in line)
    assert daemon.poll() is None
    daemon.terminate()
    _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert machine.registry.check() == []
    machine.once()
    machine.wait_for(lambda: forgiven(machine).get("done") or machine.once(), limit_s=60.0)
    assert machine.jobs.get(job.id).status == "done"


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


def test_a_suspended_daemon_comes_back_to_a_job_that_is_somebody_elses(
    machine: DaemonMachine,
) -> None:
    """It stops its own process, and what it would say of the job is refused."""
    machine.bench.rule({"takes_s": 60.0}, kind="trial")
    machine.bench.write_table()
    job = machine.enqueue()
    daemon = machine.start()
    machine.wait_for_trial()
    asleep = [daemon.pid, *machine.at_work()]
    try:
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        watch = LeaseWatch(time.monotonic, is_gone)
        machine.wait_for(
            lambda: machine.jobs.reap(watch.lost(machine.jobs.sightings()), now=SystemClock().now())
        )
        lease = machine.jobs.acquire(
            "another", ("",), now=SystemClock().now(), duration=timedelta(minutes=1)
        )
        assert lease is not None
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        machine.wait_for(lambda: not machine.at_work())
        held = machine.jobs.get(job.id)
        assert (held.status, held.acquired_by) == ("running", "another")
        machine.jobs.finish(lease, message="by another", now=SystemClock().now())
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert daemon.returncode == 0
    assert machine.jobs.get(job.id).message == "by another"
