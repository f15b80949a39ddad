"""The NVIDIA driver's management library, behind one small face that tests can replace.

NVML answers without opening CUDA: no context, no memory on the device. In a container it shows the
host's process ids, so whoever asks for processes has to see whether it knows its own among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeVar

Answer = TypeVar("Answer")

# A chip of an unknown, newer generation is taken to be like the last known ones.
DEFAULT_CORES_PER_SM = 128
CORES_PER_SM = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}

ABSENT_ANSWERS = (
    "NVMLError_NotSupported",
    "NVMLError_NoPermission",
    "NVMLError_FunctionNotFound",
    "NVMLError_InvalidArgument",
    "NVMLError_NotFound",
    "NVMLError_NoData",
)
UNAVAILABLE = {
    "NVMLError_LibraryNotFound": (
        "the NVIDIA driver's library libnvidia-ml.so.1 is not installed",
        "Install the NVIDIA driver; it comes with the library.",
    ),
    "NVMLError_DriverNotLoaded": (
        "the NVIDIA kernel driver is not loaded",
        "Run `sudo modprobe nvidia` or reboot; a new kernel needs the driver built again.",
    ),
    "NVMLError_LibRmVersionMismatch": (
        "the NVIDIA driver's library and its kernel module are of different versions",
        "The driver was updated while running: reboot, or reload the kernel modules.",
    ),
    "NVMLError_NoPermission": (
        "this user may not talk to the NVIDIA driver",
        "Give the user access to /dev/nvidiactl and /dev/nvidia0.",
    ),
    "NVMLError_GpuIsLost": (
        "the GPU has fallen off the bus",
        "Reset it (sudo nvidia-smi --gpu-reset) or reboot; look for Xid errors in dmesg.",
    ),
}
UNKNOWN_HINT = "Run nvidia-smi: it should fail likewise and say more. A reboot often helps."


class NvmlUnavailable(Exception):
    """NVML cannot answer. `absent` is True when there is no driver at all: most likely no GPU."""

    def __init__(self, message: str, hint: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.absent = absent


@dataclass(frozen=True)
class Gpu:
    """One device a process can be given: a whole GPU, or a MIG slice with its share of things.

    `index` is nvidia-smi's: "0", or "0:1" for slice 1 of GPU 0.
    """

    index: str
    uuid: str
    name: str
    compute_capability: tuple[int, int]
    vram_bytes: int
    multiprocessors: int | None = None
    sm_clock_mhz: int | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    power_limit_w: int | None = None
    link_bandwidth_class: str = "unknown"
    mig_profile: str | None = None

    @property
    def label(self) -> str:
        slice_name = f" MIG {self.mig_profile}" if self.mig_profile else ""
        return f"{self.index} ({self.name}{slice_name}, {self.uuid})"


class Nvml(Protocol):
    """What we ask of a driver. Every method raises NvmlUnavailable when it has died."""

    def driver_version(self) -> str: ...

    def gpus(self) -> tuple[Gpu, ...]:
        """Every device in nvidia-smi's order; where MIG is on, the slices in place of the GPU."""

    def used_bytes(self, uuid: str) -> int:
        """Memory in use on the device by anybody, the driver's own reserve apart."""

    def sm_clock_mhz(self, uuid: str) -> int | None: ...

    def power_w(self, uuid: str) -> float | None: ...

    def utilization_percent(self, uuid: str) -> int | None: ...

    def compute_pids(self, uuid: str) -> frozenset[int]:
        """Processes that have the device open to compute, by the host's numbers: in a container
        these may be others' than ours, or missing."""


class NvmlLibrary:
    """`Nvml` over nvidia-ml-py. `module` is `pynvml` or something that looks like it."""

    def __init__(self, module: ModuleType | Any) -> None:
        self._nvml = module
        self._handles: dict[str, Any] = {}
        self._call(module.nvmlInit)

    def driver_version(self) -> str:
        return _text(self._call(self._nvml.nvmlSystemGetDriverVersion))

    def gpus(self) -> tuple[Gpu, ...]:
        count: int = self._call(self._nvml.nvmlDeviceGetCount)
        return tuple(gpu for index in range(count) for gpu in self._devices_of(index))

    def used_bytes(self, uuid: str) -> int:
        return int(self._memory(self._handle(uuid)).used)

    def sm_clock_mhz(self, uuid: str) -> int | None:
        nvml = self._nvml
        return self._optional(nvml.nvmlDeviceGetClockInfo, self._whole(uuid), nvml.NVML_CLOCK_SM)

    def power_w(self, uuid: str) -> float | None:
        milliwatts = self._optional(self._nvml.nvmlDeviceGetPowerUsage, self._whole(uuid))
        return None if milliwatts is None else milliwatts / 1000

    def utilization_percent(self, uuid: str) -> int | None:
        rates = self._optional(self._nvml.nvmlDeviceGetUtilizationRates, self._handle(uuid))
        return None if rates is None else int(rates.gpu)

    def compute_pids(self, uuid: str) -> frozenset[int]:
        found = self._optional(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handle(uuid))
        return frozenset(int(process.pid) for process in found or ())

    def _devices_of(self, index: int) -> Iterator[Gpu]:
        handle = self._call(self._nvml.nvmlDeviceGetHandleByIndex, index)
        whole = self._describe(str(index), handle)
        mode = self._optional(self._nvml.nvmlDeviceGetMigMode, handle)
        if mode is None or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            yield whole
            return
        for position in range(self._call(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle)):
            part = self._optional(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, position)
            if part is not None:
                yield self._slice(whole, f"{index}:{position}", part)

    def _describe(self, index: str, handle: Any) -> Gpu:
        nvml = self._nvml
        capability = self._call(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        power_mw = self._optional(nvml.nvmlDeviceGetPowerManagementLimit, handle)
        return Gpu(
            index=index,
            uuid=_text(self._call(nvml.nvmlDeviceGetUUID, handle)),
            name=_text(self._call(nvml.nvmlDeviceGetName, handle)),
            compute_capability=(capability[0], capability[1]),
            vram_bytes=int(self._memory(handle).total),
            multiprocessors=self._multiprocessors(handle, (capability[0], capability[1])),
            sm_clock_mhz=self._optional(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            memory_bandwidth_bytes_per_s=self._memory_bandwidth(handle),
            power_limit_w=None if power_mw is None else round(power_mw / 1000),
            link_bandwidth_class=self._link(handle),
        )

    def _slice(self, whole: Gpu, index: str, handle: Any) -> Gpu:
        attributes = self._optional(self._nvml.nvmlDeviceGetAttributes_v2, handle)
        vram_bytes = int(self._memory(handle).total)
        bandwidth = whole.memory_bandwidth_bytes_per_s
        share = vram_bytes / whole.vram_bytes
        return Gpu(
            index=index,
            uuid=_text(self._call(self._nvml.nvmlDeviceGetUUID, handle)),
            name=whole.name,
            compute_capability=whole.compute_capability,
            vram_bytes=vram_bytes,
            multiprocessors=attributes.multiprocessorCount if attributes else None,
            sm_clock_mhz=whole.sm_clock_mhz,
            memory_bandwidth_bytes_per_s=round(bandwidth * share) if bandwidth else None,
            power_limit_w=whole.power_limit_w,
            link_bandwidth_class=whole.link_bandwidth_class,
            mig_profile=_profile(_text(self._call(self._nvml.nvmlDeviceGetName, handle))),
        )

    def _memory(self, handle: Any) -> Any:
        """Version 2 leaves the driver's own reserve out of `used`; old drivers lack it."""
        nvml = self._nvml
        memory = self._optional(nvml.nvmlDeviceGetMemoryInfo, handle, version=nvml.nvmlMemory_v2)
        return memory or self._call(nvml.nvmlDeviceGetMemoryInfo, handle)

    def _multiprocessors(self, handle: Any, capability: tuple[int, int]) -> int | None:
        cores = self._optional(self._nvml.nvmlDeviceGetNumGpuCores, handle)
        per_sm = CORES_PER_SM.get(capability, DEFAULT_CORES_PER_SM)
        return cores // per_sm if cores else None

    def _memory_bandwidth(self, handle: Any) -> int | None:
        """Two transfers a clock, on each wire of the bus."""
        nvml = self._nvml
        clock_mhz = self._optional(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM)
        width_bits = self._optional(nvml.nvmlDeviceGetMemoryBusWidth, handle)
        return 2 * clock_mhz * 10**6 * width_bits // 8 if clock_mhz and width_bits else None

    def _link(self, handle: Any) -> str:
        generation = self._optional(self._nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
        width = self._optional(self._nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
        return f"pcie{generation}x{width}" if generation and width else "unknown"

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = self._call(self._nvml.nvmlDeviceGetHandleByUUID, uuid)
        return self._handles[uuid]

    def _whole(self, uuid: str) -> Any:
        """Clocks and power belong to the whole GPU, not to a slice of it."""
        handle = self._handle(uuid)
        if not uuid.startswith("MIG-"):
            return handle
        return self._call(self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle)

    def _optional(
        self, function: Callable[..., Answer], *args: Any, **kwargs: Any
    ) -> Answer | None:
        """None where this GPU or driver does not know."""
        try:
            return function(*args, **kwargs)
        except self._nvml.NVMLError as error:
            if type(error).__name__ in ABSENT_ANSWERS:
                return None
            raise _unavailable(error) from error

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except self._nvml.NVMLError as error:
            raise _unavailable(error) from error


def open_nvml() -> NvmlLibrary:
    """The machine's NVML. Raises NvmlUnavailable with what is wrong and what to do."""
    try:
        module = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        raise NvmlUnavailable(
            "the Python package nvidia-ml-py is not installed", "pip install nvidia-ml-py"
        ) from None
    return NvmlLibrary(module)


def _unavailable(error: Exception) -> NvmlUnavailable:
    kind = type(error).__name__
    message, hint = UNAVAILABLE.get(
        kind, (f"the NVIDIA driver does not answer: {error}", UNKNOWN_HINT)
    )
    return NvmlUnavailable(message, hint, absent=kind == "NVMLError_LibraryNotFound")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _profile(mig_name: str) -> str:
    """ "1g.10gb" of "NVIDIA H100 80GB HBM3 MIG 1g.10gb"."""
    return mig_name.rpartition("MIG ")[2]
