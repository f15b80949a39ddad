"""The worker process: `python -m tuner.pipeline.worker`. One job in, events out, then it ends.

Everything a job needs from the environment was set by the parent before this interpreter began.
torch is imported by `main`, after the parent's death is watched for and so that its time counts.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from tuner.processes import PARENT_VARIABLE, die_with_parent
from tuner.protocol import EVENT_FD_VARIABLE, JOB, Event, Progress


class EventStream:
    """Writes events, one JSON object a line, each flushed as it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, event: Event) -> None:
        self._stream.write(event.model_dump_json() + "\n")
        self._stream.flush()

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        self.send(Progress(phase=phase, done=done, total=total, detail=detail))


def main() -> int:
    """Run the job on standard input. Exit code 0 if a result was sent, 1 if a failure was."""
    start = time.perf_counter()
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))
    stream = os.fdopen(int(os.environ[EVENT_FD_VARIABLE]), "w", encoding="utf-8")
    events = EventStream(stream)
    job = JOB.validate_json(sys.stdin.read())

    from tuner.pipeline.jobs import run_job

    import_s = time.perf_counter() - start
    return run_job(job, events.send, events.progress, import_s)


if __name__ == "__main__":
    sys.exit(main())
