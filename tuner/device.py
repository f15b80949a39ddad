"""What the device shows while a trial runs: memory in use, clock, power, load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from registry.errors import DeviceError
from tuner.detect import Detection
from tuner.nvml import Nvml, NvmlUnavailable, open_nvml
from tuner.processes import ProcessTree


class DeviceMonitor(Protocol):
    """One device, watched from outside the process that uses it. None: the device cannot say."""

    def used_bytes(self) -> int:
        """Memory in use: on a GPU by anybody, on a CPU by the watched tree over its baseline."""

    def sm_clock_mhz(self) -> int | None: ...

    def power_w(self) -> float | None: ...

    def utilization_percent(self) -> int | None: ...


class GpuMonitor:
    """A GPU or a MIG slice through NVML. Every answer takes well under a millisecond."""

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self._nvml = nvml
        self._uuid = uuid

    def used_bytes(self) -> int:
        return self._nvml.used_bytes(self._uuid)

    def sm_clock_mhz(self) -> int | None:
        return self._nvml.sm_clock_mhz(self._uuid)

    def power_w(self) -> float | None:
        return self._nvml.power_w(self._uuid)

    def utilization_percent(self) -> int | None:
        return self._nvml.utilization_percent(self._uuid)

    def compute_pids(self) -> frozenset[int]:
        return self._nvml.compute_pids(self._uuid)


class CpuMonitor:
    """The processor: its "device memory" is what the worker's tree adds to its baseline.

    `baseline_bytes` is the worker's PSS after its imports; compiler children do not count.
    """

    def __init__(self, tree: ProcessTree, baseline_bytes: int) -> None:
        self._tree = tree
        self._baseline_bytes = baseline_bytes

    def used_bytes(self) -> int:
        return max(self._tree.memory_bytes() - self._baseline_bytes, 0)

    def sm_clock_mhz(self) -> int | None:
        return None

    def power_w(self) -> float | None:
        return None

    def utilization_percent(self) -> int | None:
        return None


def open_gpu_monitor(
    detection: Detection, *, nvml: Callable[[], Nvml] = open_nvml
) -> GpuMonitor | None:
    """The detected GPU's monitor; None on a CPU. Raises DeviceError when the driver has died."""
    if detection.device_uuid is None:
        return None
    try:
        return GpuMonitor(nvml(), detection.device_uuid)
    except NvmlUnavailable as error:
        raise DeviceError(error.message, hint=error.hint) from error
