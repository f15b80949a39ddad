"""What the daemon says: one line an event, for people or as JSON, with its facts as fields."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from typing_extensions import override

FACTS = "facts"

logger = logging.getLogger("tuner.daemon")


def say(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """`event` is a fixed phrase to search for; what differs from time to time is in `facts`."""
    logger.log(level, event, extra={FACTS: facts})


def warn(event: str, **facts: Any) -> None:
    say(event, level=logging.WARNING, **facts)


class JsonLines(logging.Formatter):
    """`{"time": …, "level": …, "event": …}` and the facts, one object a line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """`2026-11-27 16:00:00 info job acquired job=3 model=sdxl`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

    @override
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, FACTS, {})
        return " ".join([super().format(record), *(f"{k}={_quoted(v)}" for k, v in facts.items())])


def _quoted(value: Any) -> str:
    """One event is one line, whatever stands in its facts."""
    text = str(value)
    is_plain = text.isprintable() and not set(text) & set(' "')
    return text if text and is_plain else json.dumps(text, ensure_ascii=False)


def set_up(form: str, stream: TextIO | None = None) -> None:
    """Log what the daemon and the registry say to `stream` (default: standard error). `form` is
    "json" or "text"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name in ("tuner", "registry"):
        root = logging.getLogger(name)
        root.handlers = [handler]
        root.setLevel(logging.INFO)
        root.propagate = False
