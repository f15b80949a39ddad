"""`tuner run` killed by SIGKILL at random moments and begun again, until it ends by itself.

The command line is the real one; its trials run under `--python`, a script that starts the worker
of tests/tuner/study_worker.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from registry.client import open_registry
from registry.errors import (
    DeviceBusy,
    Interrupted,
    RegistryFull,
    RegistryMissing,
    RegistryReadOnly,
)
from registry.record import Trial
from registry.store import Registry
from registry.studies import UNFINISHED
from tests.tuner.study_bench import SCRIPT, Key, StudyBench, keys_of

ROOT = Path(__file__).parents[2]
CALL_MAIN = "from tuner.cli.main import main; main()"
MAIN = (sys.executable, "-c", CALL_MAIN)
UNPRIVILEGED = (
    sys.executable,
    "-c",
    f"from tests.registry.children import drop_privileges; drop_privileges(); {CALL_MAIN}",
)
"""Root may write everywhere, and so could not find a file read-only."""
ASKED = ("run", "--model", "tiny-flux", "--vram", "2GB", "--gpu", "cpu", "--json")
LONGEST_LIFE_S = 4.0
"""A little more than a whole run takes, so that kills fall everywhere in it."""
SETTLE_S = 10.0
FULL_BYTES = 2**22


class Machine:
    """A home of its own and the command that tunes in it."""

    def __init__(self, home: Path, python: Path | None) -> None:
        self.home = home
        options = ("--python", str(python)) if python else ()
        self.arguments = (*ASKED, *options)
        self.environ = {**os.environ, "TUNER_HOME": str(home), "PYTHONPATH": str(ROOT)}

    @property
    def registry_path(self) -> Path:
        return self.home / "data" / "registry.sqlite3"

    def start(
        self, *more: str, main: tuple[str, ...] = MAIN, **options: Any
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*main, *self.arguments, *more],
            cwd=self.home,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def kept(self) -> set[Key]:
        """Finished trials of a study that has not ended; a kill may come before there is any."""
        with suppress(RegistryMissing):
            registry = open_registry(self.registry_path, create=False)
            going_on = [row for row in registry.studies() if row.status in UNFINISHED]
            return {key for row in going_on for key in keys_of(registry.trials(row.id))}
        return set()

    def workers(self) -> list[int]:
        """Processes that work in this home."""
        return [pid for pid in pids() if str(self.home / "cache") in folder_of(pid)]


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def folder_of(pid: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink())
    return ""


@pytest.fixture
def bench(tmp_path: Path) -> StudyBench:
    return StudyBench(tmp_path)


@pytest.fixture
def machine(tmp_path: Path, bench: StudyBench) -> Machine:
    home = tmp_path / "machine"
    home.mkdir()
    return Machine(home, fake_python(bench))


def fake_python(bench: StudyBench) -> Path:
    """An interpreter, as far as `--python` can tell; its own files may be of any size."""
    words = (sys.executable, "-S", "-E", str(SCRIPT), str(bench.write_table()))
    path = bench.root / "python"
    path.write_text(f"#!/bin/sh\nulimit -S -f unlimited\nexec {shlex.join(words)}\n")
    path.chmod(0o755)
    return path


def test_a_run_killed_at_any_moment_goes_on(
    soak_seed: int, machine: Machine, bench: StudyBench
) -> None:
    chance = random.Random(soak_seed)
    bench.rule({"takes_s": 0.1}, kind="trial")
    bench.rule({"failure": "error"}, scope="whole", rung="denoiser")
    bench.write_table()
    for _ in range(chance.randint(2, 5)):
        without_repeating(machine, bench, lambda: kill_after(machine, life_s(chance)))
        assert_tidy(machine)
    without_repeating(machine, bench, lambda: to_the_end(machine))
    assert_whole(machine)


def kill_after(machine: Machine, life_s: float) -> None:
    """Waits for the run to end by itself no longer than `life_s`."""
    run = machine.start()
    try:
        run.communicate(timeout=life_s)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()


def life_s(chance: random.Random) -> float:
    return chance.uniform(0.3, LONGEST_LIFE_S)


def without_repeating(machine: Machine, bench: StudyBench, live: Callable[[], None]) -> None:
    before, kept = bench.trial_jobs(), machine.kept()
    live()
    assert not kept & set(bench.trial_jobs() - before), "a finished trial ran again"


def to_the_end(machine: Machine) -> None:
    run = machine.start()
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    (outcome,) = json.loads(out)
    assert outcome["published"]


def assert_tidy(machine: Machine) -> None:
    """Soon after a kill nobody works, nobody holds the device, and nothing in the registry is
    half there."""
    deadline_s = time.monotonic() + SETTLE_S
    while (alive := machine.workers()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not alive
    assert_unlocked(machine.home / "data" / "locks" / "cpu.lock", deadline_s)
    with suppress(RegistryMissing):
        registry = open_registry(machine.registry_path, create=False)
        assert registry.check() == []
        for row in registry.studies():
            keys = keys_of(filter(counts_once, registry.trials(row.id)))
            assert len(set(keys)) == len(keys)
        assert_published_by_finished_studies(registry)


def counts_once(trial: Trial) -> bool:
    """A replay that failed, as on a busy machine by its times, is tried again."""
    return trial.rung != "replay" or trial.failure is None


def assert_published_by_finished_studies(registry: Registry) -> None:
    finished = {row.id: row for row in registry.studies() if row.status == "finished"}
    published = Counter(stored.record.study for stored in registry.history())
    assert published == {
        name: row.summary["records"] for name, row in finished.items() if row.summary
    }


def assert_unlocked(path: Path, deadline_s: float) -> None:
    """A compiler that the worker started holds the lock too, and ends a little after it."""
    if path.exists():
        with path.open("r+") as file:
            while not locked(file) and time.monotonic() < deadline_s:
                time.sleep(0.02)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def locked(file: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def assert_whole(machine: Machine) -> None:
    """At the end no file of any study, trial or artifact is left over."""
    assert_tidy(machine)
    registry = open_registry(machine.registry_path, create=False)
    assert {row.status for row in registry.studies()} == {"finished"}
    left = [path for path in (machine.home / "cache").rglob("*") if path.is_file()]
    assert left == []
    artifacts = Path(f"{machine.registry_path}.artifacts")
    rows = {item.sha256 for stored in registry.history() for item in stored.record.artifacts}
    assert rows <= {path.name for path in artifacts.rglob("*")}


def test_a_second_run_on_the_device_names_the_first(machine: Machine, bench: StudyBench) -> None:
    bench.rule({"takes_s": 60.0}, kind="trial")
    bench.write_table()
    first = machine.start()
    assert first.stderr is not None
    next(line for line in first.stderr if "baseline" in line)
    try:
        second = machine.start()
        _, err = second.communicate(timeout=60)
        assert second.returncode == DeviceBusy.exit_code
        assert f"process {first.pid} " in err
    finally:
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == Interrupted.exit_code
    assert "Run the same command again to continue." in err
    assert_tidy(machine)


def test_a_registry_that_cannot_be_written(machine: Machine, bench: StudyBench) -> None:
    """It is said before a trial is paid for."""
    folder = machine.home / "shared"
    path = folder / "registry.sqlite3"
    open_registry(path)
    path.chmod(0o444)
    folder.chmod(0o555)
    run = machine.start("--registry", str(path), main=UNPRIVILEGED)
    _, err = run.communicate(timeout=60)
    assert run.returncode == RegistryReadOnly.exit_code, err
    assert str(path) in err
    assert "Traceback" not in err
    assert not bench.trial_jobs()


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    machine: Machine, bench: StudyBench
) -> None:
    """The limit on a file's size stands for the disk: the log of a failed trial is over it."""
    bench.rule(
        {"failure": "error", "prints": "x" * 2 * FULL_BYTES}, scope="regional", rung="denoiser"
    )
    bench.write_table()

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))

    run = machine.start(preexec_fn=small_disk)
    _, err = run.communicate(timeout=120)
    assert run.returncode == RegistryFull.exit_code, err
    assert "Traceback" not in err
    assert_tidy(machine)
    assert machine.kept(), "what finished before stays"
    bench.rules.clear()
    bench.write_table()
    without_repeating(machine, bench, lambda: to_the_end(machine))
    assert_whole(machine)


MOST_LIVES = 3
"""Each replay is given up after two that missed by their times; then there is no answer."""


@pytest.mark.slow
def test_with_the_real_worker(soak_seed: int, tmp_path: Path) -> None:
    """One kill and its continuation a round, torch and all. On a busy machine the replays of a
    life may prove nothing in its time: the next one goes on."""
    machine = Machine(tmp_path, None)
    more = ("--time-limit", "45s", "--steps", "2")
    run = machine.start(*more)
    with suppress(subprocess.TimeoutExpired):
        run.communicate(timeout=random.Random(soak_seed).uniform(8.0, 40.0))
    run.kill()
    run.communicate()
    assert_tidy(machine)
    for _ in range(MOST_LIVES):
        run = machine.start(*more)
        _, err = run.communicate(timeout=400)
        assert run.returncode in (0, 1), err
        assert_tidy(machine)
        if run.returncode == 0:
            assert_whole(machine)
            break
