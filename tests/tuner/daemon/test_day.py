"""A day of daemons in a few seconds: jobs asked for, kills, sleeps, clocks set, others on the GPU.

The registry and the lease watch are the real ones; time and the daemons' processes are made up.
After each step the promises are checked: no job is lost, none is worked at by two, none is done
twice, and no lease of a dead daemon lasts two lease times while somebody else is at work.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from registry.client import open_registry
from registry.errors import LeaseLost
from registry.leases import Lease
from tests.registry import samples
from tuner.daemon.lease_watch import LeaseWatch

LEASES_S = (120.0, 300.0)
"""Daemons of one registry need not agree."""
STEP_S = 20.0
START = datetime(2026, 11, 27, tzinfo=UTC)


@dataclass
class World:
    """`elapsed_s` never goes back; the time of day is that and what somebody set the clock by."""

    elapsed_s: float = 0.0
    set_by: timedelta = timedelta()
    dead: set[str] = field(default_factory=set)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed_s) + self.set_by


@dataclass
class Daemon:
    """One that is alive; `lease` is what it believes to hold, `duration` how long that lasts, and
    half of it is its heartbeat."""

    name: str
    watch: LeaseWatch
    duration: timedelta
    lease: Lease | None = None
    beat_s: float = 0.0


class Day(RuleBasedStateMachine):
    daemons: Bundle[Daemon] = Bundle("daemons")
    empty: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        path = self.folder / "registry.sqlite3"
        shutil.copy(self.empty, path)
        self.jobs = open_registry(path, create=False).jobs
        self.world = World()
        self.names = 0
        self.alive: list[Daemon] = []
        self.slept: list[Daemon] = []
        self.asked: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.lease_s: dict[str, float] = {}
        self.held_by_the_dead_s: Counter[tuple[int, str]] = Counter()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(target=daemons, same_machine=st.booleans(), lease_s=st.sampled_from(LEASES_S))
    def start(self, same_machine: bool, lease_s: float) -> Daemon:
        self.names += 1
        sees = self.world.dead.__contains__ if same_machine else (lambda _: False)
        watch = LeaseWatch(lambda: self.world.elapsed_s, sees)
        daemon = Daemon(f"daemon-{self.names}", watch, timedelta(seconds=lease_s))
        self.lease_s[daemon.name] = lease_s
        self.alive.append(daemon)
        return daemon

    @rule(number=st.integers(0, 5), priority=st.integers(0, 3))
    def ask(self, number: int, priority: int) -> None:
        body = samples.job(10**9 + number)
        job, _ = self.jobs.enqueue(body, priority=priority, now=self.world.now())
        self.asked.add(job.id)

    @rule(daemon=daemons)
    def kill(self, daemon: Daemon) -> None:
        if daemon in self.alive:
            self.alive.remove(daemon)
            self.world.dead.add(daemon.name)

    @rule(days=st.sampled_from([-1, 1]))
    def set_clock(self, days: int) -> None:
        self.world.set_by += timedelta(days=days)

    @precondition(lambda self: self.alive)
    @rule(steps=st.integers(1, 30))
    def go_on(self, steps: int) -> None:
        """Time passes, and every living daemon does what is due at each step."""
        for _ in range(steps):
            self.pass_on(self.alive)

    @rule(daemon=daemons, minutes=st.integers(1, 15))
    def suspend(self, daemon: Daemon, minutes: int) -> None:
        """One is asleep for a while; the others work on."""
        self.slept.append(daemon)
        others = [one for one in self.alive if one is not daemon]
        for _ in range(minutes * 3):
            self.pass_on(others)

    @rule(daemon=daemons, how=st.sampled_from(["finish", "fail", "hand back"]))
    def end_job(self, daemon: Daemon, how: str) -> None:
        """Its process comes to an end; perhaps the lease was lost long before."""
        if daemon not in self.alive or daemon.lease is None:
            return
        lease, daemon.lease, now = daemon.lease, None, self.world.now()
        try:
            if how == "finish":
                self.jobs.finish(lease, message=daemon.name, now=now)
                self.ends[lease.job.id] += 1
            elif how == "fail":
                self.jobs.fail(lease, message="failed", now=now)
            else:
                self.jobs.hand_back(lease, message="handed back", now=now)
        except LeaseLost:
            return

    def pass_on(self, awake: list[Daemon]) -> None:
        self.world.elapsed_s += STEP_S
        for daemon in awake:
            self.step(daemon)
        if awake:
            running = [(seen.job_id, seen.owner) for seen in self.jobs.sightings()]
            held_s = self.held_by_the_dead_s
            self.held_by_the_dead_s = Counter(
                {held: held_s[held] + int(STEP_S) for held in running if held[1] in self.world.dead}
            )

    def step(self, daemon: Daemon) -> None:
        now = self.world.now()
        if lost := daemon.watch.lost(self.jobs.sightings()):
            self.jobs.reap(lost, now=now)
        try:
            if daemon.lease is None:
                daemon.lease = self.jobs.acquire(
                    daemon.name, ("",), now=now, duration=daemon.duration
                )
                daemon.beat_s = self.world.elapsed_s
            elif self.world.elapsed_s - daemon.beat_s >= daemon.duration.total_seconds() / 2:
                self.jobs.extend(daemon.lease, now=now, duration=daemon.duration)
                daemon.beat_s = self.world.elapsed_s
        except LeaseLost:
            daemon.lease = None

    @invariant()
    def no_job_is_lost(self) -> None:
        assert {job.id for job in self.jobs.list()} == self.asked

    @invariant()
    def nobody_shares_a_job(self) -> None:
        running = {job.id: job for job in self.jobs.list(statuses=("running",))}
        holders = [d for d in self.alive if d.lease is not None and self.is_valid(d.lease)]
        assert len({d.lease.job.id for d in holders if d.lease}) == len(holders)
        for daemon in holders:
            assert daemon.lease is not None
            assert running[daemon.lease.job.id].acquired_by == daemon.name

    def is_valid(self, lease: Lease) -> bool:
        job = self.jobs.get(lease.job.id)
        return job.status == "running" and job.token == lease.token

    @invariant()
    def nothing_is_done_twice(self) -> None:
        done = [job.id for job in self.jobs.list(statuses=("done",))]
        assert self.ends == Counter(done)

    @invariant()
    def no_dead_lease_lasts(self) -> None:
        for (_, owner), held_s in self.held_by_the_dead_s.items():
            assert held_s < 2 * self.lease_s[owner]

    @invariant()
    def nobody_who_keeps_his_lease_loses_it(self) -> None:
        """Of those that were not asleep: whatever lease another daemon has."""
        for daemon in self.alive:
            if daemon.lease is not None and daemon not in self.slept:
                assert self.is_valid(daemon.lease)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "registry.sqlite3"
    open_registry(path)
    return path


def test_a_day_of_daemons(empty: Path) -> None:
    Day.empty = empty
    run_state_machine_as_test(
        Day,
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
