"""A driver made of values, and a `pynvml` made of values for the class that talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, TypeVar

from tuner.nvml import Gpu, NvmlUnavailable

GIB = 2**30
Number = TypeVar("Number", int, float)
H100 = Gpu(
    index="0",
    uuid="GPU-11111111-0000-0000-0000-000000000000",
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    vram_bytes=80 * GIB,
    multiprocessors=132,
    sm_clock_mhz=1980,
    memory_bandwidth_bytes_per_s=3_352_320_000_000,
    power_limit_w=700,
    link_bandwidth_class="pcie5x16",
)
SECOND = replace(H100, index="1", uuid="GPU-22222222-0000-0000-0000-000000000000")
RTX = replace(
    H100,
    index="2",
    uuid="GPU-33333333-0000-0000-0000-000000000000",
    name="NVIDIA GeForce RTX 4090",
    compute_capability=(8, 9),
    vram_bytes=24 * GIB,
)
SLICES = tuple(
    replace(
        H100,
        index=f"0:{number}",
        uuid=f"MIG-{number}aaaaaaa-0000-0000-0000-000000000000",
        vram_bytes=10 * GIB,
        mig_profile="1g.10gb",
    )
    for number in range(2)
)


@dataclass
class FakeNvml:
    """`used` and `utilization` are read one after another; the last value stays. `asked` are the
    devices that were asked about; `processes` are those that have it open."""

    devices: tuple[Gpu, ...] = (H100,)
    used: list[int] = field(default_factory=lambda: [0])
    utilization: list[int] = field(default_factory=lambda: [0])
    dead: bool = False
    asked: set[str] = field(default_factory=set)
    processes: Callable[[], Iterable[int]] = tuple

    def __call__(self) -> FakeNvml:
        if self.dead:
            raise NvmlUnavailable("the NVIDIA kernel driver is not loaded", "sudo modprobe nvidia")
        return self

    def driver_version(self) -> str:
        return "580.159.04"

    def gpus(self) -> tuple[Gpu, ...]:
        return self.devices

    def compute_pids(self, uuid: str) -> frozenset[int]:
        self.asked.add(uuid)
        return frozenset(self.processes())

    def used_bytes(self, uuid: str) -> int:
        return self._next(self.used, uuid)

    def sm_clock_mhz(self, uuid: str) -> int | None:
        return self._next([1755], uuid)

    def power_w(self, uuid: str) -> float | None:
        return self._next([431.6], uuid)

    def utilization_percent(self, uuid: str) -> int | None:
        return self._next(self.utilization, uuid)

    def _next(self, values: list[Number], uuid: str) -> Number:
        self().asked.add(uuid)
        return values.pop(0) if len(values) > 1 else values[0]


class NVMLError(Exception):
    pass


def error(name: str) -> NVMLError:
    """An error of the class that `pynvml` would raise for this code."""
    made = type(name, (NVMLError,), {})(name)
    assert isinstance(made, NVMLError)
    return made


class FakePynvml:
    """The functions that `NvmlLibrary` calls. `answers` maps a function's name to what it returns
    or raises; `mig` are the profiles of the slices of the only GPU."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 2  # noqa: N815

    def __init__(self, *, mig: tuple[str, ...] = (), **answers: Any) -> None:
        self._mig = mig
        self._answers = {
            "nvmlInit": None,
            "nvmlSystemGetDriverVersion": "580.159.04",
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetCudaComputeCapability": [9, 0],
            "nvmlDeviceGetPowerManagementLimit": 700_000,
            "nvmlDeviceGetNumGpuCores": 16896,
            "nvmlDeviceGetMemoryBusWidth": 5120,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetMigMode": [int(bool(mig)), int(bool(mig))],
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetAttributes_v2": SimpleNamespace(multiprocessorCount=16),
            "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetPowerUsage": 431_600,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=20),
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "gpu",
            **answers,
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self._answers:
            raise AttributeError(name)
        return lambda *_args: self._answer(name)

    def nvmlDeviceGetHandleByIndex(self, _index: int) -> str:  # noqa: N802
        return str(self._answer("nvmlDeviceGetHandleByIndex", "gpu"))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return "0" if uuid.startswith("MIG-") else "gpu"

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _gpu: str, position: int) -> str:  # noqa: N802
        if position >= len(self._mig):
            raise error("NVMLError_NotFound")
        return str(position)

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return "GPU-1111" if handle == "gpu" else f"MIG-{handle}aaa"

    def nvmlDeviceGetName(self, handle: str) -> bytes:  # noqa: N802
        name = "NVIDIA H100 80GB HBM3"
        return (name if handle == "gpu" else f"{name} MIG {self._mig[int(handle)]}").encode()

    def nvmlDeviceGetMaxClockInfo(self, _handle: str, clock: int) -> int:  # noqa: N802
        return 1980 if clock == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int = 1) -> Any:  # noqa: N802
        self._answer(f"memory_v{version}", None)
        total = 80 * GIB if handle == "gpu" else 10 * GIB
        return SimpleNamespace(total=total, used=GIB if version == 1 else 5)

    def _answer(self, name: str, default: Any = None) -> Any:
        answer = self._answers.get(name, default)
        if isinstance(answer, Exception):
            raise answer
        return answer
