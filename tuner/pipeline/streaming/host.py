"""Page-locked host memory of exactly the size asked for.

torch's own pinned allocator rounds every request up to a power of two, which can double tens of
gigabytes. Here pages come from the system and are registered with CUDA where they lie.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from pathlib import Path

import torch

PORTABLE = 1
"""cudaHostRegisterPortable: locked for every context of the process."""
MEMORY_INFO = Path("/proc/meminfo")


class HostMemoryError(RuntimeError):
    """The host has no memory left for weights that wait there."""


def host_bytes(size: int) -> torch.Tensor:
    """`size` bytes of pageable memory, at least one, that starts at a page; shape (size,). Raises
    HostMemoryError before the system would begin to swap or kill."""
    available = _available_bytes()
    if available is not None and available < size:
        raise HostMemoryError(
            f"streaming needs {size} more bytes of host memory, and {available} are available:"
            " keep more blocks on the device, or stream fewer components"
        )
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise HostMemoryError(f"the system gives no {size} bytes of host memory") from error
    with contextlib.suppress(OSError):  # A kernel without huge pages: only slower to register.
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def locked_bytes(size: int, device: torch.device) -> torch.Tensor:
    """`size` page-locked bytes, shape (size,), until they are let go. Where the driver cannot
    register pages (a limit on locked memory) they come from torch's pinned allocator. Raises
    HostMemoryError."""
    run = host_bytes(size)
    address = run.data_ptr()
    with torch.cuda.device(device):
        code = int(torch.cuda.cudart().cudaHostRegister(address, size, PORTABLE))
        if code == 0:
            weakref.finalize(run, _unlock, address, device, run.untyped_storage())
            return run
        del run
        _clear_error(device)
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise HostMemoryError(
                f"the driver page-locks no {size} bytes of host memory (CUDA error {code}): raise"
                " the limit on locked memory (ulimit -l), or keep more blocks on the device"
            ) from error


def _unlock(address: int, device: torch.device, storage: torch.UntypedStorage) -> None:
    """`storage` keeps the pages mapped until they are no longer registered."""
    with contextlib.suppress(RuntimeError):  # A device that failed: the process cannot use it.
        torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(address)
    del storage


def _clear_error(device: torch.device) -> None:
    """The runtime remembers its last error, and the next kernel's launch check would report it."""
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device=device).add_(1)


def _available_bytes() -> int | None:
    """What the host can give without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
