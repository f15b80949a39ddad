"""A job's process as the daemon sees it: started, waited for, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tuner.daemon.order import WorkOrder

STOP_GRACE_S = 10.0
"""What a job gets to end its trial and hand itself back, before it is killed."""
COMMAND = (sys.executable, "-P", "-m", "tuner.daemon.work")
"""-P: no module of the current folder shadows one of ours."""


class JobProcess:
    """A running job. Its output goes to `log_path`, after what is there."""

    def __init__(
        self,
        order: WorkOrder,
        log_path: Path,
        environ: Mapping[str, str],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Must be called from a thread that lives as long as the job: it dies with that thread.
        Raises OSError."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(environ),
                start_new_session=True,
            )
        self.log_path = log_path
        self._hand_over(order)
        threading.Thread(target=self._wait, args=(on_end,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; below zero the signal that ended it."""
        return self._process.poll()

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Asks it to end, then kills it; its trial dies with it. Returns when it is dead."""
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hand_over(self, order: WorkOrder) -> None:
        """A process that died already says so by its exit code."""
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(BrokenPipeError), pipe:
                pipe.write(order.model_dump_json().encode())

    def _wait(self, on_end: Callable[[], None]) -> None:
        self._process.wait()
        on_end()


def order_for(registry: str, gpu: str | None, job: int, token: int, nice: int) -> WorkOrder:
    """An order of this process."""
    return WorkOrder(
        registry=registry, gpu=gpu, job=job, token=token, parent_pid=os.getpid(), nice=nice
    )
