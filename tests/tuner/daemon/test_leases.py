"""Which leases are lost: owners that are dead, heartbeats that stand still."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace

from registry.leases import Sighting
from tests.tuner.study_bench import ManualClock
from tuner.daemon.lease_watch import LeaseWatch
from tuner.daemon.owner import is_gone, own_name

LEASE_S = 60.0
SEEN = Sighting(job_id=1, token=1, renewals=0, owner="elsewhere/boot/1/2/3", lease_s=LEASE_S)


def test_this_process_is_there() -> None:
    assert not is_gone(own_name())
    assert str(os.getpid()) in own_name().split("/")


def test_a_process_that_ended_is_gone() -> None:
    code = "from tuner.daemon.owner import own_name; print(own_name())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert is_gone(child.stdout.strip())


def test_a_pid_that_was_given_again_is_another_owner() -> None:
    *place, start = own_name().split("/")
    assert is_gone("/".join([*place, str(int(start) - 1)]))


def test_a_boot_before_this_one_is_gone_and_what_cannot_be_seen_is_not() -> None:
    host, boot, namespace, pid, start = own_name().split("/")
    assert host == platform.node()
    assert is_gone(f"{host}/{'0' * len(boot)}/{namespace}/{pid}/{start}")
    assert not is_gone(f"{host}/{boot}/1{namespace}/{pid}/1")
    assert not is_gone(f"other-{host}/{boot}/{namespace}/{pid}/1")
    assert not is_gone("somebody")


def watch_with(clock: ManualClock) -> LeaseWatch:
    return LeaseWatch(clock.monotonic_s, is_gone)


def test_a_lease_whose_heartbeat_stands_still_is_lost() -> None:
    clock = ManualClock()
    watch = watch_with(clock)
    assert watch.lost([SEEN]) == ()
    clock.elapsed_s += LEASE_S - 1
    assert watch.lost([SEEN]) == ()
    clock.elapsed_s += 1
    assert watch.lost([SEEN]) == (SEEN,)


def test_a_heartbeat_begins_the_wait_anew() -> None:
    clock = ManualClock()
    watch = watch_with(clock)
    watch.lost([SEEN])
    clock.elapsed_s += LEASE_S - 1
    renewed = replace(SEEN, renewals=1)
    assert watch.lost([renewed]) == ()
    clock.elapsed_s += LEASE_S - 1
    assert watch.lost([renewed]) == ()
    assert watch.lost([replace(SEEN, token=2)]) == ()


def test_a_job_that_ran_out_of_sight_is_watched_from_its_return() -> None:
    clock = ManualClock()
    watch = watch_with(clock)
    watch.lost([SEEN])
    watch.lost([])
    clock.elapsed_s += 2 * LEASE_S
    assert watch.lost([SEEN]) == ()


def test_how_long_a_lease_lasts_is_its_owners_to_say() -> None:
    """A daemon with short leases does not take the jobs of one with long ones."""
    clock = ManualClock()
    watch = watch_with(clock)
    patient = replace(SEEN, job_id=2, lease_s=10 * LEASE_S)
    watch.lost([SEEN, patient])
    clock.elapsed_s += 10 * LEASE_S - 1
    assert watch.lost([SEEN, patient]) == (SEEN,)
    clock.elapsed_s += 1
    assert patient in watch.lost([SEEN, patient])


def test_a_dead_owners_lease_is_lost_at_once() -> None:
    watch = LeaseWatch(ManualClock().monotonic_s, lambda owner: owner == SEEN.owner)
    assert watch.lost([SEEN, replace(SEEN, job_id=2, owner="alive")]) == (SEEN,)
