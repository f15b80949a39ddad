"""The computer around the device: processor, memory limits, compiler, container.

Everything is read from files under `root`, so that a test can lay out another machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
GIB = 2**30
SMALL_HOST_BYTES = 4 * GIB
SMALL_STEP_BYTES = 64 * 2**20
VECTOR_FLAGS = {"avx512f": "avx512", "avx2": "avx2", "avx": "avx", "sve": "sve", "asimd": "neon"}
EXTRA_FLAGS = {
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
}
COMPILERS = ("g++", "c++", "clang++")
COMPILER_TIMEOUT_S = 10
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"


def cpu_model(root: Path = ROOT) -> str:
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_isa(root: Path = ROOT) -> str:
    """The vector instructions that decide which code Inductor and oneDNN choose, in short."""
    info = _cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    widest = next((name for flag, name in VECTOR_FLAGS.items() if flag in flags), None)
    extras = [name for flag, name in EXTRA_FLAGS.items() if flag in flags]
    return " ".join([widest or platform.machine(), *extras])


def ram_bytes(root: Path = ROOT) -> int:
    """Memory this process can get: the machine's, or less where a cgroup (container) limits it.

    Rounded down to whole GiB (64 MiB on a small host): the kernel's own share changes by a few
    MiB with every update, and that does not make it another machine. Where memory is plugged in
    on demand (virtio-mem), the total says only what is plugged now, and the limit counts.
    """
    total, limit = _total_bytes(root), memory_limit_bytes(root)
    if limit is not None and (limit < total or _grows_on_demand(root)):
        total = limit
    step = GIB if total >= SMALL_HOST_BYTES else SMALL_STEP_BYTES
    return max(total // step, 1) * step


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The tightest cgroup limit above this process; None where there is none."""
    limits = [_number(file) for file in _cgroup_files(root, "memory.max", "limit_in_bytes")]
    # The first cgroup version says "no limit" with a number near 2**63.
    return min((limit for limit in limits if limit is not None and limit < 2**60), default=None)


def oom_kills(root: Path = ROOT) -> int:
    """How often the kernel killed for memory so far: in our cgroups, and on the machine."""
    files = [*_cgroup_files(root, "memory.events", "oom_control"), root / "proc/vmstat"]
    return sum(_counter(file, "oom_kill") for file in files)


def compiler_version(cxx: str | None = None) -> str | None:
    """First line of the C++ compiler's `--version`, or None without a working one."""
    for name in [cxx] if cxx else COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return _version_line(path)
    return None


def nvidia_gpu_on_bus(root: Path = ROOT) -> bool:
    """Whether the PCI bus shows an NVIDIA display or compute device, driver or not."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if _read(device / "vendor").strip() == NVIDIA_VENDOR:
            if _read(device / "class").startswith(DISPLAY_CLASS):
                return True
    return False


def in_container(root: Path = ROOT) -> bool:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    groups = _read(root / "proc/1/cgroup")
    return any(word in groups for word in ("docker", "kubepods", "containerd", "lxc"))


def _version_line(path: str) -> str | None:
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=COMPILER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _total_bytes(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _grows_on_demand(root: Path) -> bool:
    return any((root / "sys/bus/virtio/drivers/virtio_mem").glob("virtio*"))


def _cgroup_files(root: Path, unified: str, classic: str) -> Iterator[Path]:
    """The files of our memory cgroup and of all above it, in either version of cgroups."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            yield from _upwards(mount, path, unified)
            yield from _upwards(mount / "unified", path, unified)
        elif "memory" in controllers.split(","):
            yield from _upwards(mount / "memory", path, f"memory.{classic}")


def _upwards(mount: Path, path: str, name: str) -> Iterator[Path]:
    """In a container `path` may be the host's: then only the mount itself exists."""
    folder = mount / path.strip("/")
    while True:
        if (folder / name).is_file():
            yield folder / name
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entries."""
    first = _read(root / "proc/cpuinfo").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _counter(file: Path, name: str) -> int:
    for line in _read(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
