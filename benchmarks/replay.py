"""Recorded trials as a machine that answers again, without running anything.

A denoiser trial is answered with its recorded figures. Whole requests of a plan are answered from
its trial at the pipeline rung where one was recorded; otherwise they are made up from its steps and
from what is predicted beside them. Times vary by the recorded spread, or by `NOISE` where
that is less, drawn anew for each trial from a seed; what is recorded counts as the truth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from benchmarks.recorded import RecordedTrial
from registry.errors import InvalidInput
from registry.plan import Plan
from registry.record import Failure, Measurement, Quality, Rung, ShapeMeasurement, Trial
from tuner.candidate import Candidate
from tuner.corrections import CORRECTED
from tuner.gate import MEDIAN_ERROR, SD_PER_MAD
from tuner.objective import Judge, compile_s
from tuner.search.durations import COMPILED_SHARE

NOISE = 0.003
"""Relative standard deviation of a trial's times, at the least: two trials of one plan in a row."""
REPEATS = 5
FIRST_STEPS = 2
"""Whole requests that a proof times, and the steps of the request before them."""


@dataclass(frozen=True)
class Landscape:
    """Trials of one model, workload and kind of device. `budget_bytes` is what plans must fit."""

    name: str
    items: tuple[RecordedTrial, ...]
    baseline: RecordedTrial
    budget_bytes: int

    @cached_property
    def judge(self) -> Judge:
        return Judge("latency", self.baseline.workload, self.steps)

    @property
    def steps(self) -> int:
        return self.baseline.steps or self.baseline.default_steps

    @property
    def denoiser(self) -> str:
        return self.baseline.denoiser

    @cached_property
    def by_plan(self) -> dict[str, RecordedTrial]:
        """One trial a plan: the first that timed the denoiser alone, else whole requests; one that
        nothing foreign disturbed before others."""
        found: dict[str, RecordedTrial] = {}
        for item in sorted(self.items, key=_rank):
            if not item.is_baseline:
                found.setdefault(item.trial.plan.digest, item)
        return found

    @cached_property
    def whole_by_plan(self) -> dict[str, RecordedTrial]:
        """Of those recorded at the pipeline rung."""
        whole = [item for item in self.items if item.trial.rung == "pipeline"]
        in_order = sorted(whole, key=_rank, reverse=True)
        return {item.trial.plan.digest: item for item in in_order if not item.is_baseline}

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every recorded plan, with the prediction that was frozen before its trial."""
        return tuple(candidate_of(item) for item in self.by_plan.values())

    @property
    def reference(self) -> Candidate:
        """The baseline as a study predicts it again: with what it taught itself, which is nothing
        where foreign load disturbed it."""
        estimate, measured = self.baseline.roofline, self.baseline.trial.measurement
        if measured is None or measured.latency_s is None or measured.contaminated is not None:
            return Candidate(self.baseline.trial.plan, estimate)
        seen = {"step_ms": measured.step_ms, "latency_s": measured.latency_s, "source": CORRECTED}
        return Candidate(self.baseline.trial.plan, estimate.model_copy(update=seen))

    def item(self, plan: Plan) -> RecordedTrial | None:
        """The plan's trial, the baseline's for the baseline's plan unless it has another."""
        is_baseline = plan == self.baseline.trial.plan
        return self.by_plan.get(plan.digest, self.baseline if is_baseline else None)

    def truth_s(self, plan: Plan) -> float | None:
        """Seconds of a request by what is recorded; None for a plan that did not run, whose
        picture was refused or that is over the budget."""
        item = self.item(plan)
        if item is None or item.trial.measurement is None or not is_accepted(item):
            return None
        measured = item.trial.measurement
        if measured.memory.peak_vram_bytes > self.budget_bytes:
            return None
        return self.judge.projected(measured, candidate_of(item).estimate).value_s

    @cached_property
    def best_s(self) -> float:
        """Of all recorded plans, the baseline among them. Raises InvalidInput where none is
        good."""
        known = [self.truth_s(plan) for plan in self._plans]
        good = [value for value in known if value is not None]
        if not good:
            raise InvalidInput(f"{self.name}: no recorded plan ran within the budget")
        return min(good)

    @cached_property
    def best_plan(self) -> Plan:
        return next(plan for plan in self._plans if self.truth_s(plan) == self.best_s)

    @property
    def _plans(self) -> tuple[Plan, ...]:
        recorded = (item.trial.plan for item in self.by_plan.values())
        return (*recorded, self.baseline.trial.plan)

    @cached_property
    def exhaustive_s(self) -> float:
        """Seconds of a trial of every recorded plan, and of the proof of the best."""
        trials_s = sum(item.trial.duration_s for item in self.by_plan.values())
        return trials_s + self.proof_s(self.best_plan)

    def proof_s(self, plan: Plan) -> float:
        """Expected seconds of its pipeline rung and its replay."""
        item = self.item(plan) or self.baseline
        return whole_s(item, "pipeline", self.steps) + whole_s(item, "replay", self.steps)

    def regret(self, plan: Plan | None) -> float:
        """How much slower than the best, as a share of it; infinite for none, and for a plan that
        is no answer."""
        truth_s = None if plan is None else self.truth_s(plan)
        return math.inf if truth_s is None else truth_s / self.best_s - 1


def _rank(item: RecordedTrial) -> tuple[bool, bool]:
    return item.trial.rung != "denoiser", item.is_contaminated


def candidate_of(item: RecordedTrial) -> Candidate:
    return Candidate(item.trial.plan, item.trial.estimate or item.roofline)


def is_accepted(item: RecordedTrial) -> bool:
    """Whether its picture was accepted, or nothing is known of it."""
    return item.trial.quality is None or item.trial.quality.passed


def whole_s(item: RecordedTrial, rung: Rung, steps: int) -> float:
    """Seconds of a trial of whole requests: the start and the load as they were recorded, the
    first call by what the rung compiles anew."""
    trial, measured = item.trial, item.trial.measurement
    if measured is None:
        return trial.duration_s
    first_s = sum(shape.first_call_s for shape in measured.shapes)
    steps_s = sum(timed_s(shape) for shape in measured.shapes)
    fixed_s = max(0.0, trial.duration_s - first_s - steps_s)
    share = COMPILED_SHARE[rung] if compile_s(trial.plan) else 1.0
    beside_s = beside_steps_s(item)
    requests_s = sum(REPEATS * (beside_s + steps * x.step_ms / 1000) for x in measured.shapes)
    return fixed_s + share * first_s + requests_s


def timed_s(shape: ShapeMeasurement) -> float:
    """What was timed of it after the first call."""
    return sum(shape.latency_samples_s) or shape.steps * shape.step_ms / 1000


def beside_steps_s(item: RecordedTrial) -> float:
    """Seconds of a request outside its steps: as predicted, which on the whole recording is how a
    denoiser trial is scored too."""
    estimate = candidate_of(item).estimate
    return max(0.0, estimate.latency_s - item.default_steps * estimate.step_ms / 1000)


class Machine:
    """Answers proposals for one landscape. Every answer moves its clock on."""

    def __init__(self, landscape: Landscape, seed: int) -> None:
        self.landscape = landscape
        self.elapsed_s = 0.0
        self._chance = random.Random(f"{landscape.name} {seed}")  # noqa: S311 - noise, no secret

    def baseline(self) -> Trial:
        """As it was recorded; it takes none of the time that is counted."""
        return self.landscape.baseline.trial

    def run(self, rung: Rung, plan: Plan, limit_s: float | None = None) -> Trial:
        """A trial that takes longer than `limit_s` is a failure that took as long. Raises
        InvalidInput for a plan that was not recorded."""
        item = self.landscape.item(plan)
        if item is None:
            raise InvalidInput(f"{self.landscape.name}: plan {plan.digest[:12]} was not recorded")
        trial = self._denoiser(item) if rung == "denoiser" else self._whole(item, rung)
        started_at = self.landscape.baseline.trial.started_at + timedelta(seconds=self.elapsed_s)
        if limit_s is not None and trial.duration_s > limit_s:
            failure = Failure(kind="timeout", message=f"took longer than {limit_s:.0f} s")
            cut = {"measurement": None, "quality": None, "failure": failure, "duration_s": limit_s}
            trial = trial.model_copy(update=cut)
        self.elapsed_s += trial.duration_s
        return trial.model_copy(update={"started_at": started_at})

    def _denoiser(self, item: RecordedTrial) -> Trial:
        trial = self._judged(item.trial)
        if trial.measurement is None:
            return trial.model_copy(update={"rung": "denoiser"})
        factor = self._factor(trial.measurement)
        shapes = tuple(_steps_only(shape, factor) for shape in trial.measurement.shapes)
        measured = trial.measurement.model_copy(update={"rung": "denoiser", "shapes": shapes})
        return trial.model_copy(update={"rung": "denoiser", "measurement": measured})

    def _whole(self, item: RecordedTrial, rung: Rung) -> Trial:
        recorded = self.landscape.whole_by_plan.get(item.trial.plan.digest)
        trial = self._judged((recorded or item).trial)
        duration_s = whole_s(recorded or item, rung, self.landscape.steps)
        if trial.measurement is None:
            return trial.model_copy(update={"rung": rung})
        factor, beside_s = self._factor(trial.measurement), beside_steps_s(item)
        shapes = tuple(self._request(shape, factor, beside_s) for shape in trial.measurement.shapes)
        measured = trial.measurement.model_copy(update={"rung": rung, "shapes": shapes})
        update = {"rung": rung, "measurement": measured, "duration_s": duration_s}
        return trial.model_copy(update=update)

    def _request(self, shape: ShapeMeasurement, factor: float, beside_s: float) -> ShapeMeasurement:
        middle_s = shape.latency_s
        if middle_s is None:
            middle_s = beside_s + self.landscape.steps * shape.step_ms / 1000
        spread = self._spread_of_samples(shape)
        samples = sorted(
            middle_s * factor * math.exp(self._chance.gauss(0.0, spread)) for _ in range(REPEATS)
        )
        update = {
            "steps": self.landscape.steps,
            "step_ms": shape.step_ms * factor,
            "latency_samples_s": tuple(samples),
            "latency_s": samples[REPEATS // 2],
        }
        return shape.model_copy(update=update)

    def _judged(self, trial: Trial) -> Trial:
        """Over the budget is a failure. A picture that nothing is known of counts as kept."""
        measured = trial.measurement
        if measured and measured.memory.peak_vram_bytes > self.landscape.budget_bytes:
            failure = Failure(kind="out_of_memory", message="over the budget")
            return trial.model_copy(
                update={"measurement": None, "quality": None, "failure": failure}
            )
        if measured and trial.quality is None:
            return trial.model_copy(update={"quality": UNKNOWN_QUALITY})
        return trial

    def _factor(self, measured: Measurement) -> float:
        """Of this trial's times over the recorded ones."""
        spread = max(NOISE, *(_error_of_median(shape) for shape in measured.shapes))
        return math.exp(self._chance.gauss(0.0, spread))

    def _spread_of_samples(self, shape: ShapeMeasurement) -> float:
        return max(NOISE, SD_PER_MAD * shape.step_ms_mad / shape.step_ms / math.sqrt(shape.steps))


UNKNOWN_QUALITY = Quality(
    policy="balanced", passed=True, calibrated=False, worst={"sqnr_db": 120.0}, scores=()
)


def _error_of_median(shape: ShapeMeasurement) -> float:
    """Relative standard error of the step time, by its spread."""
    count = max(1, shape.steps - 1)
    return MEDIAN_ERROR * SD_PER_MAD * shape.step_ms_mad / shape.step_ms / math.sqrt(count)


def _steps_only(shape: ShapeMeasurement, factor: float) -> ShapeMeasurement:
    update = {"step_ms": shape.step_ms * factor, "latency_samples_s": (), "latency_s": None}
    return shape.model_copy(update=update)


def landscapes(
    items: Sequence[RecordedTrial], budget_bytes: int | None = None
) -> tuple[Landscape, ...]:
    """One for each model, workload and kind of device that has a baseline and other trials.
    `budget_bytes` None is the budget they were recorded within."""
    groups: dict[tuple[str, str, str], list[RecordedTrial]] = {}
    for item in items:
        device = item.environment.hardware.name
        groups.setdefault((item.model_key, item.workload.digest, device), []).append(item)
    found = (_landscape(group, budget_bytes) for group in groups.values())
    return tuple(item for item in found if item is not None)


def _landscape(group: Sequence[RecordedTrial], budget_bytes: int | None) -> Landscape | None:
    measured = [item for item in group if item.is_baseline and item.trial.measurement]
    measured.sort(key=_rank)
    if not measured or len(measured) == len(group):
        return None
    first = measured[0]
    name = f"{first.model.name} {first.workload.label}, {first.environment.hardware.name}"
    return Landscape(name, tuple(group), first, budget_bytes or first.budget_bytes)
