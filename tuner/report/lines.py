"""The view of a run where no terminal is: one line for each thing worth keeping in a log."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from tuner.events import (
    BestChanged,
    Note,
    StageStarted,
    StudyEvent,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from tuner.report.progress import RunState, after
from tuner.report.text import mark, outcome
from tuner.units import format_bytes, format_seconds


class LineView:
    """A listener that writes lines through `write`, each with the time since the start."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._started_s = clock()
        self.state = RunState()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, event: StudyEvent) -> None:
        self.state = after(self.state, event)
        text = line_of(event)
        if text is not None:
            self._write(f"[{self._clock() - self._started_s:7.1f} s] {text}")


def line_of(event: StudyEvent) -> str | None:
    """The line for an event; None for those that only move a bar."""
    match event:
        case StudyStarted():
            kept = f", continued after {event.kept_trials} trials" if event.kept_trials else ""
            return f"study {event.study_id}{kept}"
        case StageStarted():
            return f"{event.stage}: {event.detail}" if event.detail else event.stage
        case TrialStarted():
            planned = f" of about {event.planned}" if event.planned else ""
            return f"trial {event.number}{planned} ({event.rung}): {event.label}"
        case TrialFinished():
            return trial_line(event)
        case BestChanged():
            return f"best so far: {event.label}: {best_figures(event)}"
        case Note():
            return event.text
        case _:
            return None


def trial_line(event: TrialFinished) -> str:
    """ "✓ fp8-row · regional: 101 ms a step, peak 14.2 GB"."""
    return f"{mark(event.trial)} {event.label}: {outcome(event.trial)}"


def best_figures(event: BestChanged) -> str:
    request = "" if event.latency_s is None else f"{format_seconds(event.latency_s)} a request, "
    step = format_seconds(event.step_ms / 1000)
    return f"{step} a step, {request}peak {format_bytes(event.peak_vram_bytes)}"
