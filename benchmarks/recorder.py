"""Runs the trials of a recording one after another, and keeps each in its file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import median

import click

from benchmarks.recorded import RecordedTrial, TrialFile
from benchmarks.recording import Asked, Place, Recording
from benchmarks.sampling import Choice
from registry.record import Measurement, Trial
from tuner.units import format_bytes, format_seconds


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
        self._known = self._file.keys(clean=asked.again_if_contaminated)
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
        if trial.measurement is None:
            return None
        if self._asked.blocks is not None:
            recording.time_blocks(trial, self._asked.blocks)
        return trial

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
