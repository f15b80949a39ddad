"""Recording trials: which plans of which workloads, one after another, into a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.recorded import RecordedTrial, TrialFile, trial_key
from benchmarks.sampling import Choice, distinct, in_order, shard
from registry.client import open_registry
from registry.inventory import ModelInventory
from registry.record import Measurement, Rung, Trial
from registry.workload import Shape, Workload
from tuner.candidate import Candidate
from tuner.cli.workloads import sizes_for
from tuner.clock import Clock, TimeLimit
from tuner.corrections import Corrections
from tuner.cost_model import CostModel
from tuner.desk import TrialDesk
from tuner.detect import Detection
from tuner.events import ignore
from tuner.inventories import counted_inventory, inventory_key
from tuner.labels import describe
from tuner.model_spec import ModelSpec
from tuner.planning import Planning
from tuner.request import StudyRequest
from tuner.runner import Runner
from tuner.search.entry import make_entry
from tuner.shapes import shapes_of, workload_of
from tuner.space import Restriction, survey
from tuner.units import format_bytes, format_seconds

MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Asked:
    """The options by their parameter names."""

    model: str
    budget_bytes: int
    host_budget_bytes: int | None
    resolutions: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]
    weights: Any
    revision: str | None
    gpu: str | None
    out: Path
    rung: Rung
    steps: int | None
    limit: int | None
    slow_every: int
    seed: int
    part: tuple[int, int]
    time_limit_s: float | None
    trial_limit_s: float
    restrict: Restriction
    dominated: bool
    no_baseline: bool
    share: bool
    only_list: bool


@dataclass(frozen=True)
class Place:
    """What all workloads of one recording share."""

    spec: ModelSpec
    detection: Detection
    runner: Runner
    folder: Path
    time_limit: TimeLimit
    clock: Clock
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_s", self.clock.monotonic_s())

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        click.echo(f"[{self.clock.monotonic_s() - self.started_s:7.1f} s] {text}")


def recordings(asked: Asked, place: Place) -> list[Recording]:
    """One for each size and batch, counted in one go. Raises TrialFailed and InvalidInput."""
    sizes = sizes_for(place.spec, asked.resolutions)
    every = workload_of(sizes, asked.batch_sizes)
    registry = open_registry(place.folder / "registry.sqlite3")
    inventory = counted_inventory(
        registry,
        place.spec,
        every,
        place.detection.environment.runtime,
        take=lambda: _desk(asked, place, every).take_inventory().inventory,
        now=place.clock.now(),
    )
    place.say(f"{place.spec.ref.name} counted at {every.label}")
    return [
        Recording(asked, place, inventory, shape) for shape in shapes_of(sizes, asked.batch_sizes)
    ]


def _desk(asked: Asked, place: Place, workload: Workload) -> TrialDesk:
    request = StudyRequest(
        model=place.spec,
        workload=workload,
        budget_bytes=asked.budget_bytes,
        host_budget_bytes=asked.host_budget_bytes,
        steps=asked.steps,
    )
    registry = open_registry(place.folder / "registry.sqlite3")
    folder = place.folder / workload.digest[:12]
    return TrialDesk(request, place.runner, registry, folder, place.clock, ignore)


class Recording:
    """Of one workload: its baseline, and the plans to try in their order."""

    def __init__(self, asked: Asked, place: Place, inventory: ModelInventory, shape: Shape) -> None:
        self.workload = Workload(shapes=(shape,))
        self.desk = _desk(asked, place, self.workload)
        self.inventory = inventory
        self._asked, self._place = asked, place
        self._planning = Planning(self.desk.request, inventory, place.detection.environment)
        self._roofline = self._cost_model(None)

    def baseline(self) -> Choice | None:
        """The first that is predicted to fit."""
        fitting = (
            item
            for item in self._planning.baselines()
            if item.estimate.peak_vram_bytes <= self._asked.budget_bytes
        )
        found = next(fitting, None)
        return None if found is None else Choice(found)

    def choices(self, baseline: Trial | None) -> tuple[Choice, ...]:
        """This shard's, with what the baseline taught."""
        corrections = None if baseline is None else self._planning.taught_by(baseline)
        kept = survey(
            self.inventory,
            self._place.detection.environment,
            self.workload,
            self._asked.budget_bytes,
            self._asked.host_budget_bytes,
            self._cost_model(corrections),
            self._asked.restrict,
        )
        every = [Choice(item) for item in kept.kept]
        if self._asked.dominated:
            every += [
                Choice(Candidate(item.plan, item.estimate), item.reason)
                for item in kept.dropped
                if item.stage == "dominated" and item.estimate is not None
            ]
        name, rung = self.inventory.denoiser.name, self._asked.rung
        apart = distinct(sorted(every, key=self._place_in_search), rung, name)
        ordered = in_order(
            apart,
            rung,
            name,
            self._asked.seed,
            limit=self._asked.limit,
            slow_every=self._asked.slow_every,
        )
        return shard(ordered, *self._asked.part)

    def _place_in_search(self, choice: Choice) -> tuple[bool, int, int, str]:
        """Of plans with one denoiser a search tries the one that comes first."""
        digest, name = choice.plan.digest, self.inventory.denoiser.name
        judge, budget_bytes = self._planning.judge, self._asked.budget_bytes
        return make_entry(choice.candidate, digest, judge, name, budget_bytes).order

    def recorded(self, choice: Choice, trial: Trial, run: str) -> RecordedTrial:
        spec, inventory = self._place.spec, self.inventory
        return RecordedTrial(
            model=spec.ref,
            model_key=inventory_key(spec),
            family=inventory.pipeline_class.removesuffix("Pipeline").lower(),
            denoiser=inventory.denoiser.name,
            default_steps=inventory.default_steps,
            workload=self.workload,
            environment=self._place.detection.environment,
            budget_bytes=self._asked.budget_bytes,
            steps=self._asked.steps,
            label=self.label(choice),
            dropped=choice.dropped,
            roofline=self._roofline.estimate(choice.plan, self.workload, self._asked.steps),
            trial=_as_kept(trial),
            run=run,
        )

    def key(self, choice: Choice, rung: Rung) -> str:
        return trial_key(
            inventory_key(self._place.spec),
            self.workload,
            self._place.detection.environment,
            self._asked.steps,
            rung,
            choice.plan.digest,
        )

    def label(self, choice: Choice) -> str:
        return describe(choice.plan, self.inventory)

    def _cost_model(self, corrections: Corrections | None) -> CostModel:
        environment = self._place.detection.environment
        isa = environment.runtime.cpu_isa
        return CostModel(self.inventory, environment.hardware, corrections, cpu_isa=isa)


@dataclass(frozen=True)
class Task:
    """One trial to run."""

    recording: Recording
    choice: Choice


class Recorder:
    """Runs what is not in the file yet, as long as there is time."""

    def __init__(self, asked: Asked, place: Place) -> None:
        self._asked, self._place = asked, place
        self._file = TrialFile(asked.out)
        self._known = self._file.keys()
        self._run = secrets.token_hex(4)
        self._pace = Pace()
        self._counts = {"measured": 0, "failed": 0}

    def run(self, recordings: Sequence[Recording]) -> int:
        """0, or 1 where nothing at all could be measured."""
        lists = [tuple(self._tasks(recording)) for recording in recordings]
        in_turn = chain.from_iterable(zip_longest(*lists))
        waiting = [task for task in in_turn if task is not None]
        if self._asked.only_list:
            return self._list(waiting)
        while task := self._next(waiting):
            waiting.remove(task)
            self._measure(task)
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        self._place.say(f"{counts}, {len(waiting)} left for another time, in {self._asked.out}")
        return 0 if self._counts["measured"] or self._known else 1

    def _tasks(self, recording: Recording) -> Iterator[Task]:
        baseline = None
        if not (self._asked.no_baseline or self._asked.only_list):
            baseline = self._baseline(recording)
        for choice in recording.choices(baseline):
            if recording.key(choice, self._asked.rung) not in self._known:
                yield Task(recording, choice)

    def _baseline(self, recording: Recording) -> Trial | None:
        """Run each time, for its pictures are kept nowhere; the first one stays in the file."""
        choice = recording.baseline()
        if choice is None:
            self._place.say(f"{recording.workload.label}: no baseline is predicted to fit")
            return None
        candidate = choice.candidate
        limit_s = self._limit_s()
        trial = recording.desk.baseline(candidate.plan, candidate.estimate, limit_s).trial
        item = recording.recorded(choice, trial, self._run)
        self._keep(item.model_copy(update={"is_baseline": True}), trial)
        return trial if trial.measurement is not None else None

    def _next(self, waiting: Sequence[Task]) -> Task | None:
        """The first that is expected to end in time."""
        remaining_s = self._place.time_limit.remaining_s
        if remaining_s is None:
            return next(iter(waiting), None)
        return next((t for t in waiting if self._pace.expected_s(t.choice) <= remaining_s), None)

    def _measure(self, task: Task) -> None:
        recording, candidate = task.recording, task.choice.candidate
        limit_s = self._limit_s()
        rung = self._asked.rung
        trial = recording.desk.measure(rung, candidate.plan, candidate.estimate, limit_s).trial
        self._pace.add(task.choice, trial)
        timed_out = trial.failure is not None and trial.failure.kind == "timeout"
        if timed_out and limit_s < self._asked.trial_limit_s:
            self._place.say(f"cut off by --time-limit, not kept: {recording.label(task.choice)}")
            return
        self._keep(recording.recorded(task.choice, trial, self._run), trial)

    def _limit_s(self) -> float:
        remaining_s = self._place.time_limit.remaining_s
        limit_s = self._asked.trial_limit_s
        return limit_s if remaining_s is None else min(remaining_s, limit_s)

    def _keep(self, item: RecordedTrial, trial: Trial) -> None:
        """`trial` is what is told of it, with its last words."""
        self._counts["measured" if trial.measurement else "failed"] += 1
        if item.key not in self._known:
            self._known |= {item.key}
            self._file.append(item)
        self._place.say(f"{item.workload.label}  {item.label}: {outcome_text(trial)}")

    def _list(self, waiting: Sequence[Task]) -> int:
        for task in waiting:
            expected_s = task.choice.expected_s
            label = task.recording.label(task.choice)
            click.echo(f"{expected_s:6.1f} s  {task.recording.workload.label}  {label}")
        click.echo(f"{len(waiting)} trials")
        return 0


class Pace:
    """How long trials take here, by how long those before took."""

    def __init__(self) -> None:
        self._ratios: list[float] = []
        self._by_expected: dict[float, list[float]] = {}

    def add(self, choice: Choice, trial: Trial) -> None:
        if trial.measurement is not None:
            self._ratios.append(trial.duration_s / choice.expected_s)
            self._of(choice).append(self._ratios[-1])

    def expected_s(self, choice: Choice) -> float:
        """By those that compile as much, else by all."""
        ratios = self._of(choice) or self._ratios
        return choice.expected_s * (median(ratios) if ratios else 1.0)

    def _of(self, choice: Choice) -> list[float]:
        return self._by_expected.setdefault(choice.compile_cost, [])


def _as_kept(trial: Trial) -> Trial:
    """Its log stays behind with the folder of this recording, and so do a failure's last words."""
    failure = trial.failure
    if failure is not None:
        first, *_ = failure.message.splitlines() or [""]
        failure = failure.model_copy(update={"message": first[:MESSAGE_LENGTH], "log": None})
    return trial.model_copy(update={"log": None, "failure": failure})


def outcome_text(trial: Trial) -> str:
    """A few words: what was measured or why not, and how long it took."""
    took = f"{format_seconds(trial.duration_s)}"
    if trial.measurement is None:
        failure = trial.failure
        return f"{failure.kind}: {failure.message}, {took}" if failure else took
    return f"{_figures(trial.measurement)}, {took}"


def _figures(measured: Measurement) -> str:
    step = f"{format_seconds(measured.step_ms / 1000)} a step"
    request = f", {format_seconds(measured.latency_s)} a request" if measured.latency_s else ""
    foreign = ", contaminated" if measured.contaminated else ""
    return f"{step}{request}, peak {format_bytes(measured.memory.peak_vram_bytes)}{foreign}"
