"""Which interpreters a daemon runs: a registry may name one, but not whom to trust.

Whoever can write the registry could enqueue a job with a program of his own in place of an
interpreter. So only what this user or root alone could have put there is run.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from registry.errors import InvalidInput, TrialFailed

MOST_LINKS = 40
"""As the kernel follows them."""


def refuse_foreign(python: str) -> None:
    """Raises InvalidInput for an interpreter that another user owns, or could have replaced: a
    link, a file or a folder on its way that is another's, or that everybody may write; TrialFailed
    for one that is not there, which may be made anew at this moment."""
    if python == sys.executable:
        return  # it runs us already
    path = Path(python)
    if not path.is_absolute():
        raise InvalidInput(f"the interpreter {python!r} is not named by its whole path")
    for part in _way(path):
        try:
            status = part.lstat()
        except OSError as error:
            raise TrialFailed(f"the interpreter {python} cannot be used: {error}") from error
        if why := _foreign(status):
            raise InvalidInput(
                f"the interpreter {python} is not run: {part} {why}",
                hint="A daemon runs interpreters of its own user and of root alone.",
            )


def _way(path: Path) -> Iterator[Path]:
    """As it is named, and where each link on it leads."""
    yield from (path, *path.parents)
    for _ in range(MOST_LINKS):
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
        yield from (path, *path.parents)
    real = path.resolve()
    yield from (real, *real.parents)


def _foreign(status: os.stat_result) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}"
    is_link = stat.S_ISLNK(status.st_mode)
    is_shared = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    return "can be written by everybody" if is_shared and not is_link else None
