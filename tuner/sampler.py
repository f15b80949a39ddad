"""Memory, clock and power of a running trial, sampled from outside."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tuner.device import DeviceMonitor
from tuner.proc import resident_memory
from tuner.processes import ProcessTree

DEVICE_INTERVAL_S = 0.025
HOST_INTERVAL_S = 0.25
CLOCK_INTERVAL_S = 0.2
# Weighing memory may take at most this share of the time: the kernel walks page tables for it.
HOST_DUTY = 0.05
START_PHASE = "start"
LOAD_PHASES = (START_PHASE, "load")
STEPS_PHASE = "steps"
CAPTURE_PHASE = "capture"


@dataclass(frozen=True)
class Sample:
    """What a live view shows: growth of the device's memory, host memory of the tree, now."""

    device_growth_bytes: int
    host_bytes: int
    phase: str


class Sampler:
    """Call `sample` often; it decides itself what is due.

    With a GPU `monitor` the device's growth is counted from the level at creation. Without one
    (CPU) it is the tree's PSS over the baseline given to `begin`, and nothing before it.

    `beside` weighs what a process outside the tree shares with it, which the tree would hold alone
    without that process.

    Between two weighings the kernel's own high-water mark of the worker catches short peaks: no
    peak is lost but in the last instants before the end.
    """

    def __init__(
        self,
        tree: ProcessTree,
        monitor: DeviceMonitor | None,
        clock: Callable[[], float],
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        self._tree = tree
        self._beside = beside
        self._monitor = monitor
        self._clock = clock
        self.device_level_bytes = monitor.used_bytes() if monitor else 0
        self.phase = START_PHASE
        self._peaks: dict[str, int] = {}
        self.host_peak_bytes = 0
        self.clocks_mhz: list[int] = []
        self.powers_w: list[float] = []
        self._baseline_bytes: int | None = None
        self._host_bytes = 0
        self._device_growth_bytes = 0
        self._resident_then_bytes = 0
        self._high_water_bytes = 0
        self._host_due_s = self._clock_due_s = clock()

    @property
    def device_growth_peak_bytes(self) -> int:
        return max(self._peaks.values(), default=0)

    @property
    def _counts(self) -> bool:
        """What compiling takes once more, to be kept for others, is not what the plan takes."""
        return self.phase != CAPTURE_PHASE

    @property
    def load_growth_peak_bytes(self) -> int:
        return max((self._peaks.get(phase, 0) for phase in LOAD_PHASES), default=0)

    @property
    def sm_clock_mhz(self) -> int | None:
        """Median while steps ran; None without a sample."""
        return round(statistics.median(self.clocks_mhz)) if self.clocks_mhz else None

    @property
    def power_w(self) -> int | None:
        return round(statistics.median(self.powers_w)) if self.powers_w else None

    def begin(self, baseline_bytes: int) -> None:
        """The worker has said hello: from here on, what it adds is the plan's."""
        self._catch_short_peaks()
        self._baseline_bytes = baseline_bytes
        self._weigh()

    def enter(self, phase: str) -> None:
        """What was used up to now belongs to the phase before."""
        if phase != self.phase:
            self.sample()
            self.phase = phase

    def sample(self) -> Sample:
        now_s = self._clock()
        self._catch_short_peaks()
        if now_s >= self._host_due_s:
            self._weigh()
        if self._monitor is not None:
            self._sample_gpu(self._monitor, now_s)
        return Sample(self._device_growth_bytes, self._host_bytes, self.phase)

    def _weigh(self) -> None:
        start_s = self._clock()
        resident = resident_memory(self._tree.root_pid)
        self._host_bytes = self._tree.memory_bytes() + self._beside()
        if resident is not None:
            self._resident_then_bytes = resident.now_bytes
        self._note_host(self._host_bytes)
        end_s = self._clock()
        self._host_due_s = end_s + max(HOST_INTERVAL_S, (end_s - start_s) / HOST_DUTY)

    def _catch_short_peaks(self) -> None:
        """A new high-water mark is a peak that no weighing saw."""
        resident = resident_memory(self._tree.root_pid)
        if resident is None or resident.peak_bytes <= self._high_water_bytes:
            return
        self._high_water_bytes = resident.peak_bytes
        self._note_host(self._host_bytes + resident.peak_bytes - self._resident_then_bytes)

    def _note_host(self, host_bytes: int) -> None:
        if self._counts:
            self.host_peak_bytes = max(self.host_peak_bytes, host_bytes)
        if self._monitor is None and self._baseline_bytes is not None:
            self._note_device(host_bytes - self._baseline_bytes)

    def _sample_gpu(self, monitor: DeviceMonitor, now_s: float) -> None:
        self._note_device(monitor.used_bytes() - self.device_level_bytes)
        if self.phase == STEPS_PHASE and now_s >= self._clock_due_s:
            self._clock_due_s = now_s + CLOCK_INTERVAL_S
            clock_mhz, power_w = monitor.sm_clock_mhz(), monitor.power_w()
            self.clocks_mhz += [] if clock_mhz is None else [clock_mhz]
            self.powers_w += [] if power_w is None else [power_w]

    def _note_device(self, growth_bytes: int) -> None:
        self._device_growth_bytes = max(growth_bytes, 0)
        if self._counts:
            peak = self._peaks.get(self.phase, 0)
            self._peaks[self.phase] = max(peak, self._device_growth_bytes)
