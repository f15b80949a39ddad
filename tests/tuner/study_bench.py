"""Whole studies with real worker processes that answer from a table instead of holding torch."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from registry.client import open_registry
from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import Rung, Trial
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyRow
from registry.workload import Shape, Workload
from tests.tuner import flux
from tests.tuner.fake_nvml import H100, FakeNvml
from tuner.config import Settings
from tuner.detect import Detection
from tuner.events import Listener, StudyEvent
from tuner.locks import DeviceLock
from tuner.models import resolve_model
from tuner.protocol import Hello
from tuner.request import StudyOutcome, StudyRequest
from tuner.runner import Runner
from tuner.study import run_study

GB = 10**9
SCRIPT = Path(__file__).with_name("study_worker.py")
SQUARE = Shape(height=64, width=64)
SMALL = flux.cpu(torchao=None)
"""16 candidates, none of them quantized."""
Key = tuple[Rung, str]


@dataclass
class ManualClock:
    """Each look at the time takes `tick_s`."""

    tick_s: float = 0.0
    elapsed_s: float = 0.0

    def monotonic_s(self) -> float:
        self.elapsed_s += self.tick_s
        return self.elapsed_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)


@dataclass
class StudyBench:
    """A machine with a registry under `root`. `rules` are the worker's (see study_worker).

    The device is a GPU as far as memory goes, so that peaks are what the table says. With `ahead`
    workers are started ahead of their jobs; each says that it took `import_s` to start.
    """

    root: Path
    environment: Environment = SMALL
    shapes: tuple[Shape, ...] = (SQUARE,)
    rules: list[dict[str, Any]] = field(default_factory=list)
    nvml: FakeNvml = field(default_factory=FakeNvml)
    clock: ManualClock = field(default_factory=ManualClock)
    events: list[StudyEvent] = field(default_factory=list)
    ahead: bool = False
    yields: bool = False
    import_s: float = 0.0

    @cached_property
    def registry(self) -> Registry:
        return open_registry(self.root / "registry.sqlite3")

    @property
    def settings(self) -> Settings:
        return Settings(
            registry=str(self.root / "registry.sqlite3"),
            data_dir=self.root / "data",
            cache_dir=self.root / "cache",
            config_dir=self.root / "config",
        )

    @property
    def detection(self) -> Detection:
        return Detection(self.environment, 0, H100.uuid, foreign_bytes=0)

    def request(self, **changes: Any) -> StudyRequest:
        request = StudyRequest(
            model=resolve_model("tiny-flux"),
            workload=Workload(shapes=self.shapes),
            budget_bytes=2 * GB,
        )
        return replace(request, **changes)

    def run(self, listener: Listener | None = None, **changes: Any) -> StudyOutcome:
        def hear(event: StudyEvent) -> None:
            self.events.append(event)
            if listener is not None:
                listener(event)

        lock = DeviceLock(H100.uuid, self.settings.locks_dir)
        with lock, closing(self.runner(lock)) as runner:
            return run_study(
                self.request(**changes),
                registry=self.registry,
                runner=runner,
                detection=self.detection,
                settings=self.settings,
                keys=SigningKeys(self.settings.config_dir),
                clock=self.clock,
                listener=hear,
            )

    def runner(self, lock: DeviceLock | None = None) -> Runner:
        runner = Runner(
            sys.executable,
            self.detection,
            lock,
            self.settings.scratch_dir,
            environ={},
            worker_command=(sys.executable, "-S", "-E", str(SCRIPT), str(self.write_table())),
            nvml=self.nvml,
            kill_grace_s=0.5,
            ahead=self.ahead,
        )
        runner.yields = self.yields
        return runner

    def write_table(self) -> Path:
        hello = Hello(
            tuner_version="0.1.0",
            environment=self.environment,
            host_baseline_bytes=0,
            import_s=self.import_s,
        )
        table = {
            "hello": hello.model_dump(mode="json"),
            "inventory": self.inventory.model_dump(mode="json"),
            "rules": self.rules,
        }
        path = self.root / "table.json"
        path.write_text(json.dumps(table))
        return path

    @property
    def inventory(self) -> ModelInventory:
        """The shipped one as this machine's libraries would count it at the shapes."""
        shipped = flux.shipped("tiny-flux")
        runtime = self.environment.runtime
        libraries = ("torch", "diffusers", "transformers")
        profiles = (shipped.profiles[0].model_copy(update={"shape": s}) for s in self.shapes)
        update = {
            "profiles": tuple(profiles),
            "made_with": {name: getattr(runtime, name) for name in libraries},
        }
        return shipped.model_copy(update=update)

    def rule(self, then: dict[str, Any], *, first: int | None = None, **when: Any) -> None:
        self.rules.append({"when": when, "then": then, "first": first})

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Facts of every job a worker was given, in order."""
        return [job["facts"] for job in self._noted()]

    def trial_jobs(self) -> Counter[Key]:
        """How often a worker was given each rung of each plan."""
        noted = (job for job in self._noted() if job["facts"]["kind"] == "trial")
        return Counter(
            (job["facts"]["rung"], Plan.model_validate(job["plan"]).digest) for job in noted
        )

    def _noted(self) -> list[dict[str, Any]]:
        path = self.root / "jobs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def study(self) -> StudyRow:
        """The only one."""
        (only,) = self.registry.studies()
        return only

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self.registry.trials(self.study().id)

    def leftovers(self) -> list[Path]:
        """Files of studies and trials that are not in the registry."""
        folders = (self.settings.cache_dir / "studies", self.settings.scratch_dir)
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    def heard(self, kind: type[StudyEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def keys_of(trials: Iterable[Trial]) -> list[Key]:
    return [(trial.rung, trial.plan.digest) for trial in trials]
