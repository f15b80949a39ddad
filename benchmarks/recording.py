"""What a recording is asked, and the plans of each of its workloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.block_timings import take_timings
from benchmarks.recorded import RecordedTrial, trial_key
from benchmarks.sampling import Choice, distinct, in_order, shard
from registry.client import open_registry
from registry.inventory import ModelInventory
from registry.record import Rung, Trial
from registry.workload import Shape, Workload
from tuner.block_kinds import Bench
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
from tuner.space import Restriction, Survey, survey
from tuner.timing_file import dump_timings, timing_file
from tuner.units import format_seconds

MESSAGE_LENGTH = 300
REGISTRY_FILE = "registry.sqlite3"


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
    again_if_contaminated: bool
    only_list: bool
    blocks: Path | None = None


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
    registry = open_registry(place.folder / REGISTRY_FILE)
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
    registry = open_registry(place.folder / REGISTRY_FILE)
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

    def time_blocks(self, baseline: Trial, path: Path) -> None:
        """Into a file as `tuner autoquant export` writes one."""
        started_s = self._place.clock.monotonic_s()
        environment = self._place.detection.environment
        found = take_timings(
            self.inventory,
            Bench(environment, baseline.plan.pipeline.dtype),
            self.workload,
            [item.plan for item in self._planning.survey().kept],
            self.desk.time_targets,
            self._place.say,
        )
        registry = open_registry(self._place.folder / REGISTRY_FILE)
        registry.put_timings(found, now=self._place.clock.now(), environment=environment)
        file = timing_file(registry.all_timings(), registry.timing_places())
        path.write_text(dump_timings(file), encoding="utf-8")
        took_s = self._place.clock.monotonic_s() - started_s
        self._place.say(f"{self.workload.label}  blocks timed, {format_seconds(took_s)}, in {path}")

    def choices(self, baseline: Trial | None) -> tuple[Choice, ...]:
        """This shard's, with what the baseline taught. Which they are and in which order is decided
        before that: shards must agree, and their baselines differ a little."""
        found = survey(
            self.inventory,
            self._place.detection.environment,
            self.workload,
            self._asked.budget_bytes,
            self._asked.host_budget_bytes,
            self._roofline,
            self._asked.restrict,
        )
        every = [Choice(item) for item in found.kept]
        if self._asked.dominated:
            every += _dominated(found)
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
        own = shard(ordered, *self._asked.part)
        return own if baseline is None else self._taught(own, baseline)

    def _taught(self, choices: Sequence[Choice], baseline: Trial) -> tuple[Choice, ...]:
        model = self._cost_model(self._planning.taught_by(baseline))
        return tuple(
            replace(item, candidate=Candidate(item.plan, model.estimate(item.plan, self.workload)))
            for item in choices
        )

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
            roofline=self._roofline.estimate(choice.plan, self.workload),
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


def _dominated(found: Survey) -> Iterator[Choice]:
    for item in found.dropped:
        if item.stage == "dominated" and item.estimate is not None:
            yield Choice(Candidate(item.plan, item.estimate), item.reason)


def _as_kept(trial: Trial) -> Trial:
    """Its log stays behind with the folder of this recording, and so do a failure's last words."""
    failure = trial.failure
    if failure is not None:
        first, *_ = failure.message.splitlines() or [""]
        failure = failure.model_copy(update={"message": first[:MESSAGE_LENGTH], "log": None})
    return trial.model_copy(update={"log": None, "failure": failure})
