"""Process trees: finding every member, weighing it, and ending all of it.

A process group is not enough: a grandchild that calls setsid leaves it. So the parent adopts
orphans while a trial runs (`adopting_orphans`), and every member carries the trial's id in its
environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from registry.errors import DeviceError
from tuner.proc import (
    Process,
    descendants,
    environment_of,
    is_compiler,
    process_table,
    proportional_bytes,
    shares_our_pids,
)

TRIAL_VARIABLE = "TUNER_TRIAL"
PARENT_VARIABLE = "TUNER_PARENT_PID"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
KILL_TIMEOUT_S = 60.0
POLL_S = 0.01


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when the thread that started it ends.

    A worker's first act. If the parent died before the asking, this process ends at once.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Descendants whose own parent ends become our children, to be found and ended."""
    before = ctypes.c_int()
    _prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(before))
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(PR_SET_CHILD_SUBREAPER, before.value)


class ProcessTree:
    """A worker and everything it started, wherever that has gone."""

    def __init__(self, root_pid: int, trial_id: str) -> None:
        self.root_pid = root_pid
        self._mark = f"{TRIAL_VARIABLE}={trial_id}".encode()
        self._sessions = {root_pid}
        self._strangers: set[tuple[int, int]] = set()

    def members(self) -> tuple[Process, ...]:
        """Everybody alive or not yet waited for, the worker first."""
        table = process_table()
        found = {pid for pid, process in table.items() if self._is_ours(process)}
        found |= descendants(table, found)
        self._sessions |= {table[pid].session for pid in found} - {os.getsid(0)}
        return tuple(table[pid] for pid in sorted(found, key=lambda pid: pid != self.root_pid))

    def memory_bytes(self) -> int:
        """PSS of all members but compilers and what those started."""
        members = [process for process in self.members() if not process.is_dead]
        compilers = {process.pid for process in members if is_compiler(process.pid)}
        compilers |= descendants({process.pid: process for process in members}, compilers)
        return sum(proportional_bytes(one.pid) for one in members if one.pid not in compilers)

    def end(self, grace_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """SIGTERM, `grace_s` later SIGKILL, until nobody is left; our dead children are reaped.

        Raises DeviceError if a process outlives even that (it hangs in the kernel).
        """
        start_s = clock()
        terminated: set[int] = set()
        while alive := self._reap():
            waited_s = clock() - start_s
            if waited_s > grace_s + KILL_TIMEOUT_S:
                raise _cannot_be_killed(alive)
            if waited_s >= grace_s:
                _signal(alive, signal.SIGKILL)
            else:
                _signal((one for one in alive if one.pid not in terminated), signal.SIGTERM)
                terminated |= {one.pid for one in alive}
            time.sleep(POLL_S)

    def _reap(self) -> list[Process]:
        """Waits for members that have ended and are our children; returns those alive.

        The worker itself is left to the Popen that knows its exit code.
        """
        members = self.members()
        for process in members:
            ours = process.parent_pid == os.getpid() and process.pid != self.root_pid
            if process.is_dead and ours:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return [process for process in members if not process.is_dead]

    def _is_ours(self, process: Process) -> bool:
        if process.pid == self.root_pid or process.session in self._sessions:
            return True
        identity = (process.pid, process.started_ticks)
        if process.parent_pid != os.getpid() or identity in self._strangers:
            return False
        if self._mark in environment_of(process.pid):
            return True
        self._strangers.add(identity)
        return False


def end_left_behind() -> tuple[int, ...]:
    """Kills what trials of dead runs left running; the pids that were killed.

    A run killed by SIGKILL takes its worker along, but not what the worker had started.
    """
    table = process_table()
    orphans = [process for process in table.values() if _is_left_behind(process, table)]
    _signal(orphans, signal.SIGKILL)
    return tuple(process.pid for process in orphans)


def _is_left_behind(process: Process, table: dict[int, Process]) -> bool:
    prefix = f"{PARENT_VARIABLE}=".encode()
    entry = next((item for item in environment_of(process.pid) if item.startswith(prefix)), None)
    if entry is None or not shares_our_pids(process.pid):
        return False
    parent = table.get(int(entry.removeprefix(prefix) or 0))
    return parent is None or parent.is_dead or parent.started_ticks > process.started_ticks


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _cannot_be_killed(alive: list[Process]) -> DeviceError:
    pids = ", ".join(str(process.pid) for process in alive)
    return DeviceError(
        f"process {pids} cannot be killed: it hangs in the kernel, most likely in the GPU driver",
        hint="Look for Xid errors in dmesg; a reboot ends it.",
    )


def _prctl(option: int, argument: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
