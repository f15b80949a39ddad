"""What befalls daemons and jobs: kills, sleep, lost leases, a registry or a disk that fails."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from contextlib import suppress
from datetime import timedelta

import pytest

from registry.errors import RegistryError
from tests.tuner.daemon.machine import CONFIG, DaemonMachine
from tuner.clock import SystemClock
from tuner.daemon.job_logs import job_log
from tuner.daemon.lease_watch import LeaseWatch
from tuner.daemon.owner import is_gone
from tuner.locks import DeviceLock

GONE_S = 6.0
JOBS = 3
Daemon = subprocess.Popen[str]


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


@pytest.mark.slow
def test_a_registry_that_is_gone_for_a_while_loses_no_job(machine: DaemonMachine) -> None:
    """Longer than a lease lasts here; the job's process ends, and nobody can write down how."""
    machine.bench.rule({"takes_s": 0.5}, first=4, kind="trial")
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
    said = next(line for line in lines if "job started" in line or "cannot be used" in line)
    if "job started" in said:
        next(line for line in lines if "job ended" in line or "cannot be used" in line)
    assert daemon.poll() is None
    daemon.terminate()
    _, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    assert machine.registry.check() == []
    machine.once()
    machine.wait_for(lambda: forgiven(machine).get("done") or machine.once(), limit_s=60.0)
    assert machine.jobs.get(job.id).status == "done"


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
