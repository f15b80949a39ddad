"""The one device a worker uses: its memory cap and its peaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from registry.errors import DeviceError
from tuner.nvml import Nvml, NvmlUnavailable, open_nvml

CAP_MARGIN_BYTES = 256 * 1024 * 1024
"""Left free under the cap for what libraries take outside torch's allocator after start."""


class Device:
    """`index` None is the CPU. On CUDA the context is opened here and its size taken from NVML's
    growth; the allocator is capped at the budget less that. Raises DeviceError."""

    def __init__(
        self, index: int | None, budget_bytes: int, *, nvml: Callable[[], Nvml] = open_nvml
    ) -> None:
        self.budget_bytes = budget_bytes
        self.torch_device = torch.device("cpu" if index is None else f"cuda:{index}")
        if index is not None:
            self._open(index, nvml)

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    def _open(self, index: int, nvml: Callable[[], Nvml]) -> None:
        if not torch.cuda.is_available():
            raise DeviceError("torch sees no CUDA device in this process")
        try:
            self._nvml = nvml()
            self._uuid = _nvml_uuid(self._nvml, str(torch.cuda.get_device_properties(index).uuid))
            self._used_before = self._nvml.used_bytes(self._uuid)
        except NvmlUnavailable as error:
            raise DeviceError(error.message, hint=error.hint) from error
        torch.cuda.set_device(index)
        torch.empty(1, device=self.torch_device)
        self._cap(index)

    def _cap(self, index: int) -> None:
        total = torch.cuda.mem_get_info(index)[1]
        allowed = self.budget_bytes - self.outside_allocator_bytes() - CAP_MARGIN_BYTES
        if allowed <= 0:
            raise DeviceError(
                f"a budget of {self.budget_bytes} bytes leaves nothing beside the CUDA context"
            )
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), index)

    def outside_allocator_bytes(self) -> int:
        """What this process holds on the device outside torch's allocator: context, kernels."""
        if not self.is_cuda:
            return 0
        used = self._nvml.used_bytes(self._uuid) - self._used_before
        return max(0, used - torch.cuda.memory_reserved(self.torch_device))

    def allocated_peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.torch_device) if self.is_cuda else 0

    def reserved_peak_bytes(self) -> int:
        return torch.cuda.max_memory_reserved(self.torch_device) if self.is_cuda else 0


def _nvml_uuid(nvml: Nvml, found: str) -> str:
    """The driver's name for the device that torch calls `found`: "GPU-…", or a slice's "MIG-…"."""
    names = [gpu.uuid for gpu in nvml.gpus() if gpu.uuid.endswith(found)]
    return names[0] if names else f"GPU-{found}"


def own_pss_bytes() -> int:
    """This process's proportional set size. Source: /proc/self/smaps_rollup."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
