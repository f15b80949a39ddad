"""The process table and what each process weighs, read from /proc (Linux).

Read directly, since a sample of a running trial must cost well under a millisecond.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
DEAD_STATES = "ZX"
STAT_BYTES = 4096
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
COMPILER = re.compile(
    r"(.*-)?(c\+\+|g\+\+|gcc|cc1|cc1plus|clang|clang\+\+|collect2|as|ld|lld|ld\.\w+"
    r"|ptxas|cicc|nvcc|fatbinary|nvlink)(-[\d.]+)?"
)
COMPILE_WORKER = "torch/_inductor/compile_worker"


@dataclass(frozen=True)
class Process:
    """One line of the process table. `started_ticks` tells a pid from its next owner."""

    pid: int
    parent_pid: int
    session: int
    state: str
    started_ticks: int

    @property
    def is_dead(self) -> bool:
        """Ended, but perhaps not waited for yet."""
        return self.state in DEAD_STATES


@dataclass(frozen=True)
class ResidentMemory:
    """Pages of one process in RAM now, and the most there ever were."""

    now_bytes: int
    peak_bytes: int


def process_table() -> dict[int, Process]:
    """Every process that can be seen, by pid."""
    with os.scandir(PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    found = map(read_process, pids)
    return {process.pid: process for process in found if process is not None}


def read_process(pid: int) -> Process | None:
    try:
        descriptor = os.open(f"{PROC}/{pid}/stat", os.O_RDONLY)
        try:
            line = os.read(descriptor, STAT_BYTES)
        finally:
            os.close(descriptor)
    except GONE:
        return None
    # The name, in brackets, may hold spaces and brackets itself.
    fields = line[line.rindex(b")") + 1 :].split(maxsplit=20)
    state = fields[0].decode()
    return Process(pid, int(fields[1]), int(fields[3]), state, int(fields[19]))


def proportional_bytes(pid: int) -> int:
    """PSS: own pages, and of each shared page its share. Swapped pages count. 0 once ended.

    The kernel walks all page tables for this: milliseconds per gigabyte.
    """
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except GONE:
        resident = resident_memory(pid)
        return resident.now_bytes if resident else 0
    return _kib_field(text, "Pss:") + _kib_field(text, "SwapPss:")


def proportional_file_bytes(pid: int) -> int:
    """The part of its PSS that is mapped from files: its share of libraries. 0 once ended, and on
    a kernel that does not tell parts (before 5.4)."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except GONE:
        return 0
    return _kib_field(text, "Pss_File:")


def resident_memory(pid: int) -> ResidentMemory | None:
    try:
        text = (PROC / str(pid) / "status").read_text()
    except GONE:
        return None
    return ResidentMemory(_kib_field(text, "VmRSS:"), _kib_field(text, "VmHWM:"))


def is_compiler(pid: int) -> bool:
    """Whether it compiles for somebody else: its memory is not the model's."""
    arguments = _command_line(pid)
    if not arguments:
        return False
    if any(COMPILE_WORKER in argument for argument in arguments):
        return True
    return COMPILER.fullmatch(Path(arguments[0]).name) is not None


def environment_of(pid: int) -> tuple[bytes, ...]:
    """What the process was started with, as NAME=value; empty where that may not be seen."""
    try:
        return tuple((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except GONE:
        return ()


def descendants(table: dict[int, Process], roots: Iterable[int]) -> set[int]:
    found: set[int] = set()
    frontier = set(roots)
    while frontier:
        children = {one.pid for one in table.values() if one.parent_pid in frontier}
        frontier = children - found
        found |= children
    return found


def shares_our_pids(pid: int) -> bool:
    """In another container's namespace the same number is another process."""
    try:
        return (PROC / str(pid) / "ns/pid").readlink() == (PROC / "self/ns/pid").readlink()
    except GONE:
        return False


def _command_line(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except GONE:
        return []


def _kib_field(text: str, name: str) -> int:
    """The first line "Name:   123 kB", in bytes; 0 without one."""
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
