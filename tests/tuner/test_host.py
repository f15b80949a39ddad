"""Other computers, laid out as files."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tuner import host

GIB = 2**30


def lay_out(root: Path, **files: str) -> None:
    """Writes files whose "/" is given as "__"."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def memory_of(root: Path, gib: float) -> None:
    lay_out(root, proc__meminfo=f"MemFree: 1 kB\nMemTotal: {int(gib * 2**20)} kB\n")


def test_whole_gibibytes(tmp_path: Path) -> None:
    memory_of(tmp_path, 125.6)
    assert host.ram_bytes(tmp_path) == 125 * GIB
    memory_of(tmp_path, 125.61)
    assert host.ram_bytes(tmp_path) == 125 * GIB


def test_a_small_host(tmp_path: Path) -> None:
    memory_of(tmp_path, 1.5)
    assert host.ram_bytes(tmp_path) == 3 * GIB // 2


def test_a_containers_limit(tmp_path: Path) -> None:
    memory_of(tmp_path, 128)
    lay_out(tmp_path, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{16 * GIB}\n")
    assert host.memory_limit_bytes(tmp_path) == 16 * GIB
    assert host.ram_bytes(tmp_path) == 16 * GIB


def test_the_tightest_limit_of_all_levels(tmp_path: Path) -> None:
    memory_of(tmp_path, 128)
    lay_out(tmp_path, proc__self__cgroup="0::/user/job\n")
    for folder, limit in (("user/job", "max"), ("user", str(8 * GIB)), ("", "max")):
        path = tmp_path / "sys/fs/cgroup" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{limit}\n")
    assert host.ram_bytes(tmp_path) == 8 * GIB


def test_the_first_version_of_cgroups(tmp_path: Path) -> None:
    memory_of(tmp_path, 128)
    lay_out(
        tmp_path,
        proc__self__cgroup="5:cpuset:/\n4:memory:/box\n0::/\n",
        sys__fs__cgroup__memory__box__x="",
    )
    limit = tmp_path / "sys/fs/cgroup/memory/box/memory.limit_in_bytes"
    limit.write_text("9223372036854771712\n")
    assert host.memory_limit_bytes(tmp_path) is None
    limit.write_text(f"{4 * GIB}\n")
    assert host.ram_bytes(tmp_path) == 4 * GIB


def test_a_limit_above_the_memory_is_none(tmp_path: Path) -> None:
    memory_of(tmp_path, 32)
    lay_out(tmp_path, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{128 * GIB}\n")
    assert host.ram_bytes(tmp_path) == 32 * GIB


def test_memory_plugged_in_on_demand(tmp_path: Path) -> None:
    """The total is what is plugged in now; the limit is what there will be."""
    memory_of(tmp_path, 31)
    lay_out(tmp_path, proc__self__cgroup="0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{128 * GIB}\n")
    (tmp_path / "sys/bus/virtio/drivers/virtio_mem/virtio3").mkdir(parents=True)
    assert host.ram_bytes(tmp_path) == 128 * GIB


def test_kills_for_memory_are_counted(tmp_path: Path) -> None:
    assert host.oom_kills(tmp_path) == 0
    lay_out(
        tmp_path,
        proc__self__cgroup="0::/\n",
        proc__vmstat="nr_free_pages 7\noom_kill 2\n",
        sys__fs__cgroup__x="",
    )
    (tmp_path / "sys/fs/cgroup/memory.events").write_text("oom 9\noom_kill 1\n")
    assert host.oom_kills(tmp_path) == 3


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("flags : sse4_2 avx avx2 fma", "avx2"),
        ("flags : avx avx2 avx512f avx512_vnni avx512_bf16", "avx512 avx512_vnni avx512_bf16"),
        ("flags : avx512f amx_bf16 amx_int8", "avx512 amx_bf16 amx_int8"),
        ("Features : fp asimd asimddp bf16", "neon dotprod bf16"),
        ("Features : asimd sve i8mm", "sve i8mm"),
        ("flags : fpu", platform.machine()),
    ],
)
def test_vector_instructions(tmp_path: Path, flags: str, isa: str) -> None:
    lay_out(tmp_path, proc__cpuinfo=f"processor : 0\nmodel name : A Chip\n{flags}\n\nprocessor : 1")
    assert host.cpu_isa(tmp_path) == isa
    assert host.cpu_model(tmp_path) == "A Chip"


def test_a_card_on_the_bus(tmp_path: Path) -> None:
    assert not host.nvidia_gpu_on_bus(tmp_path)
    for slot, vendor, kind in (("1", "0x10de", "0x020000"), ("2", "0x1022", "0x030000")):
        lay_out(tmp_path, **{f"sys__bus__pci__devices__{slot}__vendor": f"{vendor}\n"})
        lay_out(tmp_path, **{f"sys__bus__pci__devices__{slot}__class": f"{kind}\n"})
    assert not host.nvidia_gpu_on_bus(tmp_path)
    lay_out(tmp_path, sys__bus__pci__devices__1__class="0x030200\n")
    assert host.nvidia_gpu_on_bus(tmp_path)


def test_a_container_is_recognised(tmp_path: Path) -> None:
    assert not host.in_container(tmp_path)
    lay_out(tmp_path, proc__1__cgroup="0::/kubepods/pod1\n")
    assert host.in_container(tmp_path)


def test_the_compilers_version(tmp_path: Path) -> None:
    script = tmp_path / "my-c++"
    script.write_text("#!/bin/sh\necho 'my c++ 12.2.0'\necho more\n")
    script.chmod(0o755)
    assert host.compiler_version(str(script)) == "my c++ 12.2.0"
    script.write_text("#!/bin/sh\nexit 1\n")
    assert host.compiler_version(str(script)) is None
    assert host.compiler_version(str(tmp_path / "none")) is None
