"""What was fetched over HTTP, kept so that it is not fetched again and serves when nobody answers.

Best effort: what cannot be written is not kept, and what does not match its digest is not there.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from registry.rows import sha256_of

ANSWERS, ANSWERS_KEPT = "answers", 512
ARTIFACT_BYTES_KEPT = 8 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """An answer's body and ETag; `status` 404 says that there was nothing."""

    status: int
    etag: str | None
    at: datetime
    body: bytes


class AnswerCache:
    """The newest answer to each question, in files of this user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ANSWERS

    def get(self, question: str) -> Fetched | None:
        try:
            head, _, body = self._path(question).read_bytes().partition(b"\n")
            said = json.loads(head)
            if said["question"] != question or said["sha256"] != sha256_of(body):
                return None
            at = datetime.fromisoformat(said["at"])
            return Fetched(int(said["status"]), said["etag"], at, body)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, question: str, fetched: Fetched) -> None:
        head = {
            "question": question,
            "status": fetched.status,
            "etag": fetched.etag,
            "at": fetched.at.isoformat(),
            "sha256": sha256_of(fetched.body),
        }
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=".new-")
            with os.fdopen(handle, "wb") as writer:
                writer.write(json.dumps(head).encode() + b"\n" + fetched.body)
            Path(name).replace(self._path(question))
            trim(self._folder.iterdir(), most_files=ANSWERS_KEPT)
        except OSError as error:
            logger.info("an answer was not kept in %s: %s", self._folder, error.strerror)

    def renew(self, question: str) -> None:
        """It is still the newest answer, and among the last to go."""
        with suppress(OSError):
            os.utime(self._path(question))

    def _path(self, question: str) -> Path:
        return self._folder / sha256_of(question.encode())


def trim(
    files: Iterable[Path], *, most_files: int | None = None, most_bytes: int | None = None
) -> None:
    """Remove the oldest beyond a number of files or bytes. Others may do so at the same time."""
    kept_bytes = 0
    found = [(path, stat) for path in files if (stat := _stat(path)) is not None]
    found.sort(key=lambda item: item[1].st_mtime_ns, reverse=True)
    for number, (path, stat) in enumerate(found, start=1):
        kept_bytes += stat.st_size
        too_many = most_files is not None and number > most_files
        if too_many or (most_bytes is not None and kept_bytes > most_bytes):
            path.unlink(missing_ok=True)


def remove_older(files: Iterable[Path], than: datetime) -> None:
    """Others may do so at the same time."""
    for path in files:
        stat = _stat(path)
        if stat is not None and stat.st_mtime < than.timestamp():
            with suppress(OSError):  # of a folder that is only read
                path.unlink(missing_ok=True)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
