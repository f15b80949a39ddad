"""How a worker ended, put into one word and a sentence that says what to do with it."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from registry.record import Failure, FailureKind
from tuner.capabilities import DISTRIBUTION
from tuner.event_stream import OtherProtocol
from tuner.protocol import PROTOCOL
from tuner.version import __version__

LOG_TAIL_BYTES = 16 * 2**10
SHOWN_LINES = 5
SHOWN_CHARACTERS = 1000
NO_MODULE = re.compile(r"No module named '?([\w.]+)'?")
GB = 10**9


@dataclass(frozen=True)
class Stop:
    """Why the parent ended the worker."""

    kind: FailureKind
    message: str


@dataclass(frozen=True)
class Exit:
    """A worker that left without result or description.

    `code` is negative for a signal, as in subprocess. `oom_killed`: the kernel's count of
    processes killed for memory rose meanwhile. `greeted`: it had said hello.
    """

    code: int
    log: str
    python: str
    greeted: bool
    phase: str
    oom_killed: bool = False


def classify_exit(end: Exit) -> Failure:
    """The failure of a worker that died by itself."""
    if end.code < 0:
        return _by_signal(end)
    missing = NO_MODULE.search(end.log)
    if missing and not end.greeted:
        return Failure(
            kind="unsupported",
            message=f"the interpreter {end.python} has no module {missing[1]}. "
            f"To use it: {install_command(end.python)}",
            exit_code=end.code,
        )
    message = f"the worker ended with exit code {end.code} in phase {end.phase} without a result"
    return Failure(kind="crashed", message=message + _last_lines(end.log), exit_code=end.code)


def other_protocol(python: str, other: OtherProtocol) -> Failure:
    return Failure(
        kind="unsupported",
        message=f"the interpreter {python} has tuner {other.tuner_version}, which speaks protocol "
        f"{other.protocol}; this one speaks {PROTOCOL}. To use it: {install_command(python)}",
    )


def cannot_start(python: str, error: OSError) -> Failure:
    return Failure(
        kind="unsupported",
        message=f"the interpreter {python!r} cannot be started: {error.strerror}. "
        "Name a Python 3.11 or newer that has tuner installed.",
    )


def install_command(python: str) -> str:
    return f"{python} -m pip install '{DISTRIBUTION}[run]=={__version__}'"


def wall_timeout(limit_s: float, phase: str) -> Stop:
    return Stop("timeout", f"not finished after {limit_s:g} s, in phase {phase}")


def progress_timeout(limit_s: float, phase: str) -> Stop:
    return Stop("timeout", f"no sign of life for {limit_s:g} s in phase {phase}")


def over_memory(what: str, used_bytes: int, limit_bytes: int, phase: str) -> Stop:
    """`what` is "device" or "host"."""
    return Stop(
        "out_of_memory",
        f"{what} memory reached {used_bytes / GB:.2f} GB in phase {phase}; "
        f"the limit is {limit_bytes / GB:.2f} GB",
    )


def broken_protocol(problem: str) -> Stop:
    return Stop("crashed", f"protocol: {problem}")


def read_tail(log_path: Path) -> str:
    """The last kilobytes of the log."""
    with log_path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - LOG_TAIL_BYTES, 0))
        return file.read().decode(errors="replace")


def _by_signal(end: Exit) -> Failure:
    name = _signal_name(-end.code)
    if -end.code == signal.SIGKILL and end.oom_killed:
        return Failure(
            kind="out_of_memory",
            message=f"the kernel ran out of host memory and killed the worker in phase {end.phase}",
            exit_code=end.code,
        )
    message = f"the worker was killed by {name} in phase {end.phase}"
    return Failure(kind="crashed", message=message + _last_lines(end.log), exit_code=end.code)


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


def _last_lines(log: str) -> str:
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    text = "\n".join(lines[-SHOWN_LINES:])[-SHOWN_CHARACTERS:]
    return f"; its last words:\n{text}" if text else "; it wrote nothing"
