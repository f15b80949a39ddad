"""The view of a run on a terminal: stage, trial, best so far, memory bar, time left."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.events import Note, StudyEvent, TrialFinished, TrialStarted, WorkerProgress
from tuner.report.lines import best_figures, line_of
from tuner.report.progress import RunState, after
from tuner.units import format_bytes, format_seconds

REFRESHES_PER_S = 4
BAR_WIDTH = 40


class LiveView:
    """A listener that keeps one panel up to date in place; finished trials stay above it.

    `title` says what is tuned; `time_limit_s` None shows the time spent instead of the time left.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        *,
        title: str,
        time_limit_s: float | None = None,
    ) -> None:
        self.state = RunState()
        self._clock = clock
        self._started_s = clock()
        self._title = title
        self._time_limit_s = time_limit_s
        self._live = Live(self, console=console, refresh_per_second=REFRESHES_PER_S, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: StudyEvent) -> None:
        self.state = after(self.state, event)
        if isinstance(event, TrialFinished | Note):
            self._live.console.print(Text(line_of(event) or ""))

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        spent_s = self._clock() - self._started_s
        yield panel(self.state, self._title, spent_s, self._time_limit_s)


def panel(state: RunState, title: str, spent_s: float, time_limit_s: float | None) -> Table:
    """The whole view of one state."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("Tuning", Text(title))
    rows.add_row("Stage", Text(_stage(state)))
    rows.add_row("Trial", Text(_trial(state.trial, state.phase)))
    rows.add_row("Best", Text(_best(state), style="green"))
    rows.add_row("Memory", _memory(state))
    rows.add_row("Time", Text(_time(spent_s, time_limit_s)))
    rows.add_row("Tried", Text(_tried(state)))
    return rows


def _stage(state: RunState) -> str:
    if state.stage is None:
        return "starting"
    return f"{state.stage.stage}: {state.stage.detail}".removesuffix(": ")


def _trial(trial: TrialStarted | None, phase: WorkerProgress | None) -> str:
    if trial is None:
        return "none running"
    planned = f" of about {trial.planned}" if trial.planned else ""
    return f"{trial.number}{planned} ({trial.rung}): {trial.label}{_phase(phase)}"


def _phase(phase: WorkerProgress | None) -> str:
    if phase is None:
        return ""
    count = f" {phase.done}/{phase.total}" if phase.total else ""
    return f" – {phase.phase}{count}"


def _best(state: RunState) -> str:
    if state.best is None:
        return "nothing proved yet"
    return f"{state.best.label}: {best_figures(state.best)}"


def _memory(state: RunState) -> Table | Text:
    if state.memory is None:
        return Text("no trial holds memory")
    budget = state.memory.budget_bytes
    row = Table.grid(padding=(0, 1))
    style = "red" if state.peak_bytes > budget else "cyan"
    bar = ProgressBar(
        total=budget,
        completed=min(state.memory.used_bytes, budget),
        width=BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )
    used, peak = format_bytes(state.memory.used_bytes), format_bytes(state.peak_bytes)
    row.add_row(bar, Text(f"{used} of {format_bytes(budget)}, peak {peak}"))
    return row


def _time(spent_s: float, time_limit_s: float | None) -> str:
    spent = f"{format_seconds(spent_s)} spent"
    if time_limit_s is None:
        return spent
    left_s = time_limit_s - spent_s
    return f"{format_seconds(left_s)} left, {spent}" if left_s > 0 else f"time is up, {spent}"


def _tried(state: RunState) -> str:
    kept = f", {state.kept_trials} kept from before" if state.kept_trials else ""
    failed = f", {state.failed} failed" if state.failed else ""
    trials = "trial" if state.finished == 1 else "trials"
    return f"{state.finished} {trials}{failed}{kept}"
