"""The folder that compiled code is unpacked into: this user's alone, and every file in it whole."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from registry.errors import UntrustedArtifact
from tuner.compiled_code import CodePart

PRIVATE_MODE = 0o700


def private_folder(path: Path) -> Path:
    """Made with mode 0700 where it is not there. Raises UntrustedArtifact for one that is a link,
    belongs to another user, can be entered by others or runs no code, and OSError."""
    path.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UntrustedArtifact(f"{path} is not a folder")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UntrustedArtifact(
            f"the folder {path} is not this user's alone",
            hint="Compiled code is run from it: remove it, and it is made anew.",
        )
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        raise UntrustedArtifact(f"nothing can be run from {path}: it is mounted noexec")
    return path


def place(parts: Iterable[CodePart], folder: Path) -> None:
    """Write each part to its path in `folder`, but for those that lie there already.

    Processes may do so at once: each file appears whole, and what differs is replaced. Raises
    OSError.
    """
    for part in parts:
        target = folder / part.name
        if not _holds(target, part.data):
            _write(target, part.data)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as writer:
            writer.write(data)
        os.replace(name, target)  # noqa: PTH105 (the name is text)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
