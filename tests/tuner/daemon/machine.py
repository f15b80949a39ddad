"""A home of its own, its daemons, and workers that answer from a table."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry.client import open_registry
from registry.environment import Environment
from registry.job_queue import JobQueue
from registry.jobs import Job, JobBody, JobKey
from registry.store import Registry
from registry.studies import UNFINISHED
from registry.workload import Workload
from tests.tuner.study_bench import GB, SCRIPT, SQUARE, Key, StudyBench, keys_of
from tuner.clock import SystemClock
from tuner.config import Settings
from tuner.daemon.describe import describe
from tuner.daemon.owner import is_gone
from tuner.models import resolve_model

ROOT = Path(__file__).parents[3]
MAIN = (sys.executable, "-c", "from tuner.cli.main import main; main()")
SETTLE_S = 20.0
CONFIG = """
[daemon]
lease = "4s"
heartbeat = "500ms"
step = "100ms"
nice = 0
"""


class DaemonMachine:
    """`python` of its jobs is a worker of `bench`, which has the rules."""

    def __init__(self, root: Path) -> None:
        self.bench = StudyBench(root / "bench")
        self.bench.root.mkdir()
        self.home = root / "machine"
        (self.home / "config").mkdir(parents=True)
        (self.home / "config" / "config.toml").write_text(CONFIG)
        self.site = root / "site"
        self.site.mkdir()
        paths = f"{self.site}:{ROOT}"
        self.environ = {**os.environ, "TUNER_HOME": str(self.home), "PYTHONPATH": paths}
        self.python = self._fake_python()
        self.registry: Registry = open_registry(self.registry_path)

    @property
    def registry_path(self) -> Path:
        return self.home / "data" / "registry.sqlite3"

    @property
    def settings(self) -> Settings:
        return Settings(
            registry=str(self.registry_path),
            data_dir=self.home / "data",
            cache_dir=self.home / "cache",
            config_dir=self.home / "config",
            environ=self.environ,
        )

    @property
    def jobs(self) -> JobQueue:
        return self.registry.jobs

    def enqueue(self, number: int = 0, *, selector: str = "", priority: int = 0) -> Job:
        """Of another budget for each number: another question."""
        body = self.question(number, selector=selector)
        return self.jobs.enqueue(body, priority=priority, now=SystemClock().now())[0]

    def question(self, number: int = 0, **changes: Any) -> JobBody:
        key = JobKey(
            model="tiny-flux",
            ref=resolve_model("tiny-flux").ref,
            workload=Workload(shapes=(SQUARE,)),
            budget_bytes=2 * GB + number,
            python=str(self.python),
            **changes,
        )
        return JobBody(key=key)

    def start(self, *options: str, gpu: str = "cpu", **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MAIN, "daemon", "--gpu", gpu, *options],
            cwd=self.home,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def once(self) -> str:
        """Work off the queue; what the daemon said."""
        daemon = self.start("--once")
        _, err = daemon.communicate(timeout=120)
        assert daemon.returncode == 0, err
        return err

    def install(self, package: str, version: str) -> None:
        """What pip leaves of a package for others to read; one version at a time."""
        for former in self.site.glob(f"{package}-*.dist-info"):
            shutil.rmtree(former)
        folder = self.site / f"{package}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)

    def be_real(self) -> Environment:
        """From now on workers say of themselves what is true of the interpreter."""
        self.bench.environment = describe(str(self.python), "cpu", self.environ)
        self.bench.write_table()
        return self.bench.environment

    def wait_for(self, wanted: Callable[[], object], limit_s: float = SETTLE_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while not wanted():
            assert time.monotonic() < deadline_s, f"waited in vain: {self.jobs.list()}"
            time.sleep(0.02)

    def wait_for_trial(self) -> None:
        self.wait_for(self.bench.trial_jobs)

    def kept(self) -> set[Key]:
        """Finished trials of studies that have not ended."""
        going_on = [row for row in self.registry.studies() if row.status in UNFINISHED]
        return {key for row in going_on for key in keys_of(self.registry.trials(row.id))}

    def resume(self, job_id: int) -> None:
        """It need not wait any longer."""
        self.jobs.resume(job_id, now=SystemClock().now())

    def at_work(self) -> list[int]:
        """Processes of jobs and trials in this home, daemons apart."""
        return [pid for pid in pids() if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        if str(self.home / "cache") in link(pid, "cwd"):
            return True
        words = _words(pid)
        return "tuner.daemon.work" in words and f"TUNER_HOME={self.home}" in _environ(pid)

    def assert_tidy(self) -> None:
        """Soon nobody works, and no lease is held by somebody who is dead."""
        self.wait_for(lambda: not self.at_work())
        assert self.registry.check() == []

    def owners_alive(self) -> list[str]:
        owners = (job.acquired_by for job in self.jobs.list(statuses=("running",)))
        return [owner for owner in owners if owner and not is_gone(owner)]

    def _fake_python(self) -> Path:
        """An interpreter, as far as `--python` and drift can tell: it describes itself as a real
        one would that has the packages in `site` too."""
        words = (sys.executable, "-S", "-E", str(SCRIPT), str(self.bench.write_table()))
        path = self.bench.root / "python"
        real = shlex.quote(sys.executable)
        path.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *tuner.daemon.describe*) exec {real} "$@";; esac\n'
            f"exec {shlex.join(words)}\n"
        )
        path.chmod(0o755)
        return path


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def link(pid: int, name: str) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/{name}").readlink())
    return ""


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def _environ(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []
