"""Small files of the user's own configuration: replaced at once, readable by their owner alone."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Two changes of a list in `directory` at once must both be in it afterwards."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def private_file(directory: Path, data: bytes) -> Path:
    """A synced temporary file of mode 0600 in `directory`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=directory, prefix=".new-")
    with os.fdopen(handle, "wb") as writer:
        writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return Path(name)
