"""The name under which this process holds leases, and whether the owner of another is gone."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from tuner.proc import read_process

PARTS = 5
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def own_name() -> str:
    """ "host/boot/namespace/pid/start": no other process, before or after, on any machine, has it.

    The start is in the kernel's ticks since boot: unlike a time of day it cannot be set.
    """
    return _name(os.getpid())


def is_gone(owner: str) -> bool:
    """True where the owner is known to be dead: a process of this machine that is not there, or of
    a boot before this one. False where nothing is known: another machine, or a name of another
    kind."""
    parts = owner.split("/")
    if len(parts) != PARTS or parts[0] != platform.node() or not parts[3].isdigit():
        return False
    if parts[1] != _boot():
        return True
    return parts[2] == _namespace() and _name(int(parts[3])) != owner


def _name(pid: int) -> str:
    process = read_process(pid)
    started = process.started_ticks if process is not None and not process.is_dead else "gone"
    return f"{platform.node()}/{_boot()}/{_namespace()}/{pid}/{started}"


def _boot() -> str:
    return BOOT_ID.read_text().strip()[:8]


def _namespace() -> str:
    """In another container of this machine the same pid is another process."""
    return "".join(c for c in str(Path("/proc/self/ns/pid").readlink()) if c.isdigit())
