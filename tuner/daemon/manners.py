"""When a job may run: in the hours that were set, and on a GPU that nobody uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from tuner.daemon.config import Hours, IdleConfig
from tuner.device import GpuMonitor
from tuner.nvml import Nvml, NvmlUnavailable
from tuner.units import format_bytes


class Monitor(Protocol):
    def used_bytes(self) -> int: ...

    def utilization_percent(self) -> int | None: ...


class IdleGate:
    """Open once the device was idle at every look for a whole window. `opened` gives the device's
    monitor, anew after the driver failed; `clock` gives monotonic seconds.

    Memory and utilization are all it looks at: in a container the driver shows the host's process
    ids, so nobody could be told by name.
    """

    def __init__(
        self, config: IdleConfig, opened: Callable[[], Monitor], clock: Callable[[], float]
    ) -> None:
        self._config, self._opened, self._clock = config, opened, clock
        self._monitor: Monitor | None = None
        self._idle_since_s: float | None = None
        self._why: str | None = None

    def closed(self) -> str | None:
        """Call it every few seconds while no job runs: why none may, None where the device is
        idle. The words stay the same while others come and go, so that they can be told once."""
        now_s = self._clock()
        if (why := self._look()) is not None:
            self._idle_since_s, self._why = None, why
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        since_s = self._idle_since_s
        if since_s is not None and now_s - since_s >= self._config.window:
            self._why = None
            return None
        return self._why or f"the device is idle, but not yet for {self._config.window:g} s"

    def begin_anew(self) -> None:
        """What was seen up to now says nothing: a job of our own was at work."""
        self._idle_since_s = self._why = None

    def _look(self) -> str | None:
        try:
            if self._monitor is None:
                self._monitor = self._opened()
            return self._judge(self._monitor)
        except NvmlUnavailable as error:
            self._monitor = None
            return f"the driver does not answer: {error.message}"

    def _judge(self, monitor: Monitor) -> str | None:
        limits, window = self._config, f"of the device within the last {self._config.window:g} s"
        if monitor.used_bytes() > limits.memory:
            return f"others held more than {format_bytes(int(limits.memory))} {window}"
        if (monitor.utilization_percent() or 0) > limits.utilization_percent:
            return f"others used more than {limits.utilization_percent}% {window}"
        return None


class Manners:
    """Everything that decides whether a job may run now. `gate` is None on a CPU, where only the
    hours count; `local_now` is the time of day where the machine stands."""

    def __init__(
        self, hours: Sequence[Hours], gate: IdleGate | None, local_now: Callable[[], datetime]
    ) -> None:
        self._hours, self._gate, self._local_now = hours, gate, local_now

    def closed(self, working: bool) -> str | None:
        """Why no job may run; None where one may. Our own job's load is no reason to stop it."""
        if self._hours and not any(part.holds(self._local_now()) for part in self._hours):
            return "outside of the quiet hours"
        if self._gate is None:
            return None
        if working:
            self._gate.begin_anew()
            return None
        return self._gate.closed()


def gpu_monitor(nvml: Callable[[], Nvml], uuid: str) -> Callable[[], Monitor]:
    return lambda: GpuMonitor(nvml(), uuid)
