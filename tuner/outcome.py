"""What a run of one job comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from registry.record import Failure
from tuner import endings
from tuner.endings import Exit
from tuner.protocol import Hello, Result
from tuner.spawn import Worker
from tuner.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """Exactly one of `result` and `failure` is set.

    `log_path` holds what the worker and its libraries printed, `job.json` beside it what was asked;
    the folder is the caller's to remove. Growth is over the device's level at the start (GPU) or
    the worker's baseline (CPU); `host_peak_bytes` is the PSS of the worker's tree, compilers apart.
    `contaminated` says what others did on the device meanwhile, if anything. `hidden_s` of the
    worker's start had passed before it was asked for, and are not in `duration_s`.
    """

    result: Result | None
    failure: Failure | None
    hello: Hello | None
    duration_s: float
    log_path: Path
    device_growth_peak_bytes: int
    host_peak_bytes: int
    contaminated: str | None = None
    hidden_s: float = 0.0


def failure_of(watch: Watch, worker: Worker, python: str, *, oom_killed: bool) -> Failure | None:
    """Why a worker that was watched to its end gave no result; None if it did."""
    if watch.result is not None:
        return None
    if watch.failure is not None:
        return Failure(kind=watch.failure.kind, message=watch.failure.message)
    if watch.other_protocol is not None:
        return endings.other_protocol(python, watch.other_protocol)
    if watch.stop is not None:
        return Failure(kind=watch.stop.kind, message=watch.stop.message)
    return endings.classify_exit(
        Exit(
            code=worker.process.returncode,
            log=endings.read_tail(worker.log_path),
            python=python,
            greeted=watch.hello is not None,
            phase=watch.phase,
            oom_killed=oom_killed,
        )
    )


def not_started(failure: Failure, log_path: Path) -> Outcome:
    return Outcome(
        result=None,
        failure=failure,
        hello=None,
        duration_s=0.0,
        log_path=log_path,
        device_growth_peak_bytes=0,
        host_peak_bytes=0,
    )
