"""The folders that studies work in, each locked while its run lives, and the end of abandoned ones.

A study that stops early leaves its reference, captured artifacts and compile caches for the run
that goes on with it. Whoever never comes back leaves them for good: so each run looks for them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from registry.errors import DeviceBusy, RecordNotFound, RegistryCorrupt, TrialFailed
from registry.store import Registry
from registry.studies import UNFINISHED

STUDY_FOLDER = "studies"
KEPT_FOR = timedelta(days=14)
"""How long an interrupted study can be gone on with at no loss. Later its compile caches and its
baseline's reference are made again."""


@contextmanager
def working_in(folder: Path, now: datetime) -> Iterator[None]:
    """Makes the folder, marks it as used now, and holds it: no other run may use it.

    The lock is on the folder itself and dies with this process. Raises DeviceBusy where another
    run holds it, and TrialFailed where it cannot be made.
    """
    try:
        descriptor = _locked(folder)
        os.utime(descriptor, 2 * (now.timestamp(),))
    except BlockingIOError as error:
        raise DeviceBusy(
            f"another run is at work on this very study, in {folder}",
            hint="Wait for it to end: its answer is yours too.",
        ) from error
    except OSError as error:
        raise TrialFailed(
            f"cannot write the study's folder {folder}: {error.strerror}",
            hint="Make room and the folder writable, or name another one with TUNER_HOME.",
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def collect_abandoned(
    studies_dir: Path, registry: Registry, now: datetime, kept_for: timedelta = KEPT_FOR
) -> tuple[str, ...]:
    """Removes the folders of studies that have ended, and of others not worked in for `kept_for`,
    but none that a run holds. Returns the names of those removed."""
    if not studies_dir.is_dir():
        return ()
    folders = [path for path in sorted(studies_dir.iterdir()) if path.is_dir()]
    return tuple(
        folder.name
        for folder in folders
        if (_has_ended(folder, registry) or _age(folder, now) > kept_for) and _removed(folder)
    )


def _has_ended(folder: Path, registry: Registry) -> bool:
    """False for a study of another registry and one that cannot be read: they go by age."""
    try:
        return registry.study(folder.name).status not in UNFINISHED
    except (RecordNotFound, RegistryCorrupt):
        return False


def _age(folder: Path, now: datetime) -> timedelta:
    return now - datetime.fromtimestamp(folder.stat().st_mtime, now.tzinfo)


def _removed(folder: Path) -> bool:
    """Under its lock; False where a run holds it or it has gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return not folder.exists()


def _locked(folder: Path) -> int:
    """Made again where a collector removed it between the making and the locking."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
