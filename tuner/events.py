"""What a tuning run says while it runs: plain values, for a live view, a log or a test.

A listener is called from the thread that runs the study, in order, and must return quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registry.record import Rung, Trial


@dataclass(frozen=True)
class StudyStarted:
    """The study has an id; `kept_trials` finished before, in a run that did not end."""

    study_id: str
    kept_trials: int = 0


@dataclass(frozen=True)
class StageStarted:
    """A part of the study begins: "inventory", "space", "baseline", "blocks", "search", "replay",
    "publish", "audit".

    `detail` is one line for people.
    """

    stage: str
    detail: str = ""


@dataclass(frozen=True)
class TrialStarted:
    """Trial `number` (from 1) begins. `planned` is how many are likely in this stage, 0 unknown."""

    rung: Rung
    label: str
    number: int
    planned: int = 0


@dataclass(frozen=True)
class WorkerProgress:
    """Proof of life of the running trial; `phase` as in `tuner.protocol.Progress`."""

    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended, in a measurement or a failure; `label` is the one it started with."""

    trial: Trial
    label: str


@dataclass(frozen=True)
class BestChanged:
    """A better proved plan. `latency_s` is None while only steps were measured."""

    label: str
    step_ms: float
    latency_s: float | None
    peak_vram_bytes: int


@dataclass(frozen=True)
class MemorySample:
    """What the running trial holds on the device (on a CPU: of the host) against its budget."""

    used_bytes: int
    budget_bytes: int


@dataclass(frozen=True)
class Note:
    """One line that people should read: a foreign load, a resumed study, an unused artifact."""

    text: str


StudyEvent = (
    StudyStarted
    | StageStarted
    | TrialStarted
    | WorkerProgress
    | TrialFinished
    | BestChanged
    | MemorySample
    | Note
)
Listener = Callable[[StudyEvent], None]


def ignore(event: StudyEvent) -> None:
    """The listener of a run that nobody watches."""
