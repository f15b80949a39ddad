"""Load by others on the device: it makes a measurement worthless, so the measurement says so.

In a container the driver shows the host's process ids, so others are recognised by the memory they
hold and the load they cause, never by name.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from tuner.device import DeviceMonitor

# An idle driver and a desktop hold less; a process that computes holds a context and its data.
NOTICED_BYTES = 64 * 2**20
FOREIGN_BYTES = 2**30
BUSY_PERCENT = 10
WATCH_S = 1.5
WATCH_STEP_S = 0.1
ARRIVAL_STEP_S = 0.5
"""Two looks and the end of the trial's processes fit in two seconds."""
UNEXPLAINED_BYTES = 2**30
UNEXPLAINED_SHARE = 0.1
CPU_SHARE = 0.25
SETTLE_S = 2.0
GIB = 2**30


class ComputeMonitor(Protocol):
    def compute_pids(self) -> frozenset[int]:
        """Processes that have the device open to compute, by the host's numbers."""


class Witness(Protocol):
    """Made before a trial starts; asked when all its processes are dead and waited for."""

    def verdict(self) -> str | None:
        """What others did on the device meanwhile; None if nothing that matters."""


def witness_for(monitor: DeviceMonitor | None) -> Witness:
    return CpuWitness() if monitor is None else GpuWitness(monitor)


class GpuWitness:
    """Compares the device before and after the trial.

    The driver's utilization is an average over up to a second, and our own last trial may still be
    in it: so before the start it counts only while it stays high. Afterwards up to two seconds are
    waited, since a dead process's memory is freed a little later.
    """

    def __init__(
        self,
        monitor: DeviceMonitor,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._sleep = sleep
        self._level_bytes = monitor.used_bytes()
        self._before = self._load_before()

    def verdict(self) -> str | None:
        return self._before or self._load_after()

    def _load_before(self) -> str | None:
        if self._level_bytes < NOTICED_BYTES:
            return None
        busy_percent = self._lasting_utilization()
        if busy_percent >= BUSY_PERCENT:
            return f"others used {busy_percent}% of the device before the trial started"
        if self._level_bytes >= FOREIGN_BYTES:
            held = self._level_bytes / GIB
            return f"others held {held:.1f} GiB of the device before the trial started"
        return None

    def _load_after(self) -> str | None:
        deadline_s = self._clock() + SETTLE_S
        while (more := self._monitor.used_bytes() - self._level_bytes) > NOTICED_BYTES:
            if self._clock() >= deadline_s:
                return f"others took {more / GIB:.1f} GiB of the device during the trial"
            self._sleep(WATCH_STEP_S)
        return None

    def _lasting_utilization(self) -> int:
        deadline_s = self._clock() + WATCH_S
        lowest = self._monitor.utilization_percent() or 0
        while lowest >= BUSY_PERCENT and self._clock() < deadline_s:
            self._sleep(WATCH_STEP_S)
            lowest = min(lowest, self._monitor.utilization_percent() or 0)
        return lowest


def unexplained_growth(growth_bytes: int, explained_bytes: int) -> str | None:
    """Growth of the device's memory far beyond what the trial itself accounts for."""
    limit = max(UNEXPLAINED_BYTES, UNEXPLAINED_SHARE * explained_bytes)
    if growth_bytes - explained_bytes <= limit:
        return None
    more = (growth_bytes - explained_bytes) / GIB
    return f"the device's memory grew by {more:.1f} GiB more than the trial used"


class Arrivals:
    """Who opens the device while a trial of ours runs, so that we can give way to them.

    Sure or nothing: a stranger counts when two looks in a row see it, and only while our own
    processes are known among those that the driver shows. In a container, where the numbers are
    the host's, nobody is recognised; there the witness's verdict remains.
    """

    def __init__(self, monitor: ComputeMonitor, clock: Callable[[], float]) -> None:
        self._monitor, self._clock = monitor, clock
        self._before = monitor.compute_pids()
        self._suspects: frozenset[int] = frozenset()
        self._due_s = clock()

    def look(self, own_pids: Callable[[], Iterable[int]]) -> str | None:
        """Call it often; why to give way, None while nobody came."""
        now_s = self._clock()
        if now_s < self._due_s:
            return None
        self._due_s = now_s + ARRIVAL_STEP_S
        seen = self._monitor.compute_pids() - self._before
        own = frozenset(own_pids()) if seen else frozenset()
        strangers = seen - own if seen & own else frozenset()
        lasting, self._suspects = strangers & self._suspects, strangers
        if not lasting:
            return None
        return f"process {min(lasting)} came to use the device"


class CpuWitness:
    """Whether other processes took much of the processor.

    A dead child that was waited for is in our own account, so the rest is others'.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._busy_s, self._all_s = self._machine_s()
        self._own_s = _own_s()

    def verdict(self) -> str | None:
        busy_s, all_s = self._machine_s()
        elapsed_s = all_s - self._all_s
        if elapsed_s <= 0:
            return None
        others_s = busy_s - self._busy_s - (_own_s() - self._own_s)
        share = others_s / elapsed_s
        if share < CPU_SHARE:
            return None
        return f"other processes used {share:.0%} of the processor during the trial"

    def _machine_s(self) -> tuple[float, float]:
        """Busy and total seconds of all cores since boot."""
        ticks = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
        per_s = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / per_s, sum(ticks) / per_s


def _own_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
