"""The state of a run as its events tell it: what the views draw and an interruption reports."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuner.events import (
    BestChanged,
    MemorySample,
    Note,
    StageStarted,
    StudyEvent,
    StudyStarted,
    TrialFinished,
    TrialStarted,
    WorkerProgress,
)


@dataclass(frozen=True)
class RunState:
    """Everything a view shows. `finished` counts trials that ended in this run, `failed` those of
    them without a measurement; `peak_bytes` is of the running trial alone."""

    study_id: str | None = None
    kept_trials: int = 0
    stage: StageStarted | None = None
    trial: TrialStarted | None = None
    phase: WorkerProgress | None = None
    best: BestChanged | None = None
    memory: MemorySample | None = None
    peak_bytes: int = 0
    finished: int = 0
    failed: int = 0

    @property
    def all_trials(self) -> int:
        """Trials kept from before and finished now."""
        return self.kept_trials + self.finished


def after(state: RunState, event: StudyEvent) -> RunState:
    """The state once `event` has happened."""
    match event:
        case StudyStarted():
            return replace(state, study_id=event.study_id, kept_trials=event.kept_trials)
        case StageStarted():
            return replace(state, stage=event, trial=None, phase=None, memory=None)
        case BestChanged():
            return replace(state, best=event)
        case Note():
            return state
        case _:
            return _after_trial_event(state, event)


def _after_trial_event(
    state: RunState, event: TrialStarted | WorkerProgress | MemorySample | TrialFinished
) -> RunState:
    match event:
        case TrialStarted():
            return replace(state, trial=event, phase=None, memory=None, peak_bytes=0)
        case WorkerProgress():
            return replace(state, phase=event)
        case MemorySample():
            peak = max(state.peak_bytes, event.used_bytes)
            return replace(state, memory=event, peak_bytes=peak)
        case TrialFinished():
            return _finished(state, event)


def _finished(state: RunState, event: TrialFinished) -> RunState:
    return replace(
        state,
        finished=state.finished + 1,
        failed=state.failed + (event.trial.measurement is None),
        trial=None,
        phase=None,
        memory=None,
    )
