"""The worker process: `python -m tuner.pipeline.worker`. One job in, events out, then it ends.

What a job needs from the environment was set by the parent before this interpreter began, or is set
before the job where the worker was started ahead of it: then only what libraries read later.
torch is imported by `main`, after the parent's death is watched for and so that its time counts.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

from tuner.processes import PARENT_VARIABLE, die_with_parent
from tuner.protocol import AHEAD, EVENT_FD_VARIABLE, JOB, Event, Handover, Progress, Ready


class EventStream:
    """Writes events, one JSON object a line, each flushed as it is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, event: Event | Ready) -> None:
        self._stream.write(event.model_dump_json() + "\n")
        self._stream.flush()

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        self.send(Progress(phase=phase, done=done, total=total, detail=detail))


def main() -> int:
    """Run the job on standard input. Exit code 0 if a result was sent or there was no job, 1 if a
    failure was sent."""
    start = time.perf_counter()
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        die_with_parent(int(parent))
    stream = os.fdopen(int(os.environ[EVENT_FD_VARIABLE]), "w", encoding="utf-8")
    events = EventStream(stream)
    ahead = AHEAD in sys.argv[1:]
    job_json = "" if ahead else sys.stdin.read()

    from tuner.pipeline.jobs import run_job

    import_s = time.perf_counter() - start
    if ahead:
        events.send(Ready())
        line = sys.stdin.readline()
        if not line:
            return 0
        handover = Handover.model_validate_json(line)
        os.environ.update(handover.environment)
        import_s -= handover.paused_s
        job_json = Path(handover.job).read_text(encoding="utf-8")
    return run_job(JOB.validate_json(job_json), events.send, events.progress, import_s)


if __name__ == "__main__":
    sys.exit(main())
