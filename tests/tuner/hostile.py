"""What Python tells of itself while code that must do nothing is given hostile files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RUNS = frozenset(
    {
        "ctypes.dlopen",
        "import",
        "marshal.loads",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.system",
        "pickle.find_class",
        "subprocess.Popen",
    }
)
CHANGES = frozenset({"os.link", "os.mkdir", "os.rename", "os.symlink", "shutil.copyfile"})
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_heard: list[list[str]] = []
"""Hooks cannot be taken back: there is one, and it tells whoever listens now."""


@contextmanager
def watching() -> Iterator[list[str]]:
    """Everything that is run or written inside, as audit events."""
    if not hasattr(watching, "hooked"):
        sys.addaudithook(_hear)
        watching.hooked = True  # type: ignore[attr-defined]
    events: list[str] = []
    _heard.append(events)
    try:
        yield events
    finally:
        _heard.remove(events)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _heard:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if event in RUNS or event in CHANGES or writes:
        for events in _heard:
            events.append(f"{event}: {arguments!r:.200}")
