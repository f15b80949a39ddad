"""Who changed what, as one line of JSON each; and who was refused, in a file of its own.

Both are bounded. Apart, so that nobody can push the changes out of one by being refused often.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from typing_extensions import override

CHANGES, REFUSALS = "audit.jsonl", "refused.jsonl"
FILE_BYTES = 16_000_000
OLDER_FILES = 8
REFUSED = (401, 403, 421)


@dataclass(frozen=True)
class Entry:
    """One request. `who` is a token's name, None where none was accepted; `target` is the path;
    `records` are the ids of those that were published or changed, `inventory` is the key of the one
    that was replaced."""

    at: str
    who: str | None
    client: str | None
    method: str
    target: str
    status: int
    records: tuple[str, ...] = ()
    inventory: str | None = None


class Audit:
    """Writes to two files in `folder`, which are made for this user alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._changes = _PrivateFile(folder / CHANGES)
        self._refusals = _PrivateFile(folder / REFUSALS)

    def note(self, entry: Entry) -> None:
        """A line is written at once; a full disk is told on standard error by logging."""
        file = self._refusals if entry.status in REFUSED else self._changes
        file.handle(logging.makeLogRecord({"msg": json.dumps(asdict(entry))}))

    def close(self) -> None:
        self._changes.close()
        self._refusals.close()


class _PrivateFile(RotatingFileHandler):
    """Apart from the process's loggers: whatever those are set to, an audit is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=OLDER_FILES)

    @override
    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")
