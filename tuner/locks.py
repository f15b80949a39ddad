"""One tuning run at a time on a device.

The lock is a `flock` on the open file, and a trial inherits the descriptor: the device stays locked
until the run *and* its trial are gone, whatever killed the run. Nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from registry.errors import DeviceBusy, DeviceError

PATIENCE_S = 5.0
RETRY_S = 0.05
UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9.-]")


@dataclass(frozen=True)
class Holder:
    """Who wrote the lock file last; `worker_pid` is the trial that shares the lock."""

    pid: int
    command: str
    worker_pid: int | None = None


class DeviceLock:
    """A lock on `device_key` (a GPU's UUID or "cpu"), kept as a file in `folder`.

    Use as a context manager, or `acquire` and `release`. `command` is shown to whoever finds the
    device taken.
    """

    def __init__(self, device_key: str, folder: Path, command: Sequence[str] = ()) -> None:
        self.device_key = device_key
        self.path = folder / f"{UNSAFE_IN_NAMES.sub('_', device_key)}.lock"
        self._command = " ".join(command)
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int | None:
        """The locked file, to be passed to the trial; None while not held."""
        return self._descriptor

    def acquire(self, *, patience_s: float = PATIENCE_S) -> Self:
        """Takes the lock, or raises DeviceBusy naming the holder.

        A run that was killed leaves its trial a moment to die: only then are `patience_s` waited.
        Raises DeviceError where the file cannot be made.
        """
        deadline_s = time.monotonic() + patience_s
        while not self._try_acquire():
            if self._holder_lives() or time.monotonic() >= deadline_s:
                raise self._busy()
            time.sleep(RETRY_S)
        self._write(Holder(os.getpid(), self._command))
        return self

    def note_worker(self, worker_pid: int | None) -> None:
        """Leaves the trial's pid for whoever finds the device locked after the run has died."""
        self._write(Holder(os.getpid(), self._command, worker_pid))

    def release(self) -> None:
        """Closes our descriptor only: LOCK_UN would take the lock from a trial still alive."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> Holder | None:
        """What the file says; None where it is missing or being written at this moment."""
        try:
            found = json.loads(self.path.read_text())
            return Holder(int(found["pid"]), str(found["command"]), found.get("worker_pid"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __enter__(self) -> Self:
        return self if self._descriptor is not None else self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _try_acquire(self) -> bool:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _holder_lives(self) -> bool:
        holder = self.holder()
        return holder is not None and psutil.pid_exists(holder.pid)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"cannot write the lock file {self.path}: {error.strerror}",
            hint="Make room and the folder writable, or name another one with TUNER_HOME.",
        )

    def _write(self, holder: Holder) -> None:
        if self._descriptor is None:
            raise DeviceError(f"the lock on {self.device_key} is not held")
        content = json.dumps(
            {"pid": holder.pid, "command": holder.command, "worker_pid": holder.worker_pid}
        )
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content.encode(), 0)
        except OSError as error:
            self.release()
            raise self._unusable(error) from error

    def _busy(self) -> DeviceBusy:
        holder = self.holder()
        if holder is None:
            return DeviceBusy(
                f"another tuning run holds {self.device_key}", hint="Wait for it to end."
            )
        if psutil.pid_exists(holder.pid):
            return DeviceBusy(
                f"another tuning run holds {self.device_key}: process {holder.pid} "
                f"({holder.command or 'unknown command'})",
                hint="Wait for it to end, or stop it with Ctrl-C or "
                f"`kill {holder.pid}`; it can be continued later.",
            )
        return _left_behind(self.device_key, holder)


def daemon_lock(device_key: str, folder: Path, command: Sequence[str] = ()) -> DeviceLock:
    """What a daemon holds on its device for as long as it lives, apart from the device's own."""
    return DeviceLock(f"daemon-{device_key}", folder, command)


def living_daemon(device_key: str, folder: Path) -> Holder | None:
    """The daemon that serves the device, None where none does. By what its lock file says: for
    hints and defaults, not for exclusion."""
    holder = daemon_lock(device_key, folder).holder()
    return holder if holder is not None and psutil.pid_exists(holder.pid) else None


def _left_behind(device_key: str, holder: Holder) -> DeviceBusy:
    worker = f"process {holder.worker_pid}" if holder.worker_pid else "a process"
    return DeviceBusy(
        f"a trial of a run that has died (process {holder.pid}) still holds {device_key}: {worker}",
        hint="It should end within seconds. If not: "
        + (f"`kill -9 {holder.worker_pid}`." if holder.worker_pid else "look for it with ps."),
    )
