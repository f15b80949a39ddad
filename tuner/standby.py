"""The next worker, started ahead: it imports torch while the trial before it runs, then waits.

It holds nothing of the device until it has a job, belongs to no trial's process tree, is stopped
while a trial is being timed, and dies with its parent. It is of no use for a job that needs another
environment from the start; whatever happens to it, the job runs in a fresh worker instead.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from tuner import host
from tuner.detect import Detection
from tuner.proc import proportional_file_bytes
from tuner.processes import ProcessTree, adopting_orphans
from tuner.protocol import PROTOCOL, Event, Handover, Hello, Progress, Ready
from tuner.sampler import STEPS_PHASE
from tuner.spawn import JOB_FILE, Worker, write_job
from tuner.watch import has_exited

SET_LATER = frozenset({"PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"})
"""Variables that torch and Triton read when they are first needed and not as they are imported. The
numbers of threads are not among them: OpenMP reads those as it is loaded."""
IMPORT_LIMIT_S = 60.0
"""Importing torch, torchao and diffusers takes 5 to 15 s."""
LEAST_CORES = 4
LEAST_RAM_BYTES = 16 * 2**30
"""A standby holds about 1 GB and a core for ten seconds: on less, trials would notice."""
MOST_READY_BYTES = 2**12
TIMED_PHASES = (STEPS_PHASE, "images", "blocks", "layers")

Start = Callable[[Path, str, Mapping[str, str]], Worker]
"""Starts a worker ahead, in a folder that is there, with a trial's id and an environment."""


def standby_pays(detection: Detection, *, cores: int | None = None) -> bool:
    """Whether workers may be started ahead here. Never where trials are timed on the CPU: an
    import beside them would take what is being measured."""
    on_gpu = detection.device_uuid is not None
    roomy = detection.environment.hardware.host_ram_bytes >= LEAST_RAM_BYTES
    return on_gpu and roomy and (cores or host.cpu_cores()) >= LEAST_CORES


class Ahead:
    """At most one standby for a runner. `environment` is what every job has in common, `start` how
    a worker is started. One that was of no use is the last: the reason would be there again."""

    def __init__(
        self,
        scratch_dir: Path,
        environment: Mapping[str, str],
        start: Start,
        clock: Callable[[], float],
    ) -> None:
        self._scratch_dir, self._environment = scratch_dir, environment
        self._start, self._clock = start, clock
        self._standby: Standby | None = None
        self._given_up = False

    @property
    def shared_bytes(self) -> int:
        """Library pages that the running trial would hold alone without the standby."""
        return self._standby.shared_bytes if self._standby is not None else 0

    def taken(self, environment: Mapping[str, str]) -> Standby | None:
        """A standby that is ready for a job of this environment; from here on it is the caller's.
        None where there is none that will do: what there was is ended."""
        standby = self._standby
        if standby is None:
            return None
        suits = standby.suits(environment)
        if suits and standby.becomes_ready():
            self._standby = None
            return standby
        self._given_up = suits
        self.close()
        return None

    def failed(self) -> None:
        """The one that was taken never greeted."""
        self._given_up = True

    def heard(self, event: Event) -> None:
        """The running trial's own imports are over with its hello; while it is timed, nobody
        else's go on."""
        if isinstance(event, Hello):
            self._begin()
        elif self._standby is not None and isinstance(event, Progress):
            if event.phase in TIMED_PHASES:
                self._standby.pause()
            else:
                self._standby.go_on()

    def trial_ended(self) -> None:
        if self._standby is not None:
            self._standby.go_on()

    def close(self) -> None:
        standby, self._standby = self._standby, None
        if standby is not None:
            with adopting_orphans():
                standby.end()

    def _begin(self) -> None:
        if self._standby is not None or self._given_up:
            return
        trial_id = secrets.token_hex(8)
        folder = self._scratch_dir / f"trial-{trial_id}"
        try:
            folder.mkdir(parents=True)
            worker = self._start(folder, trial_id, self._environment)
        except OSError:
            self._given_up = True
            return
        self._standby = Standby(worker, self._environment, self._clock)


class Standby:
    """One worker without a job yet. `environment` is what it was started with."""

    def __init__(
        self, worker: Worker, environment: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self.worker = worker
        self._environment = dict(environment)
        self._clock = clock
        self._started_s = clock()
        self._paused_since_s: float | None = None
        self._paused_s = 0.0
        self._said = b""
        self._closed = False

    @property
    def shared_bytes(self) -> int:
        """What it maps of libraries, in proportion: with the running trial it halves these."""
        return proportional_file_bytes(self.worker.process.pid)

    def pause(self) -> None:
        """Stops an import; one that waits for its job takes no time."""
        if self._paused_since_s is None and not self.is_ready():
            self._paused_since_s = self._clock()
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self._paused_since_s is not None:
            self._signal(signal.SIGCONT)
            self._paused_s += self._clock() - self._paused_since_s
            self._paused_since_s = None

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether a job that needs this environment can still be given to it."""
        before = self._environment
        changed = {name for name, value in environment.items() if before.get(name) != value}
        return before.keys() <= environment.keys() and changed <= SET_LATER

    def is_ready(self) -> bool:
        """Looks, and waits for nothing."""
        with suppress(BlockingIOError):
            heard = os.read(self.worker.events, MOST_READY_BYTES)
            self._said += heard
            self._closed = not heard
        return _says_ready(self._said) and not has_exited(self.worker.process.pid)

    def becomes_ready(self) -> bool:
        """Waits no longer than an import may take in all."""
        self.go_on()
        deadline_s = self._started_s + self._paused_s + IMPORT_LIMIT_S
        while not self.is_ready():
            left_s = deadline_s - self._clock()
            if left_s <= 0 or self._closed or b"\n" in self._said:
                return False
            select.select([self.worker.events], [], [], left_s)
        return True

    def hand_over(self, job_json: bytes, environment: Mapping[str, str]) -> None:
        """The job to one that is ready. If it dies meanwhile, its end is as any worker's.

        Raises TrialFailed where the job cannot be written.
        """
        write_job(self.worker.folder, job_json)
        added = dict(environment.items() - self._environment.items())
        line = Handover(job=JOB_FILE, environment=added, paused_s=self._paused_s)
        stdin = self.worker.process.stdin
        if stdin is not None:
            # One short line always finds room in the empty pipe.
            with suppress(BrokenPipeError), stdin:
                stdin.write(line.model_dump_json().encode() + b"\n")

    def end(self) -> None:
        """Nothing of it is left: no process, no folder."""
        ProcessTree(self.worker.process.pid, self.worker.trial_id).end(0.0)
        self.worker.process.wait()
        os.close(self.worker.events)
        if self.worker.process.stdin is not None:
            self.worker.process.stdin.close()
        shutil.rmtree(self.worker.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.worker.process.pid, number)


def _says_ready(said: bytes) -> bool:
    """A worker of another release, or no worker at all, says something else."""
    line, end, _ = said.partition(b"\n")
    if not end:
        return False
    try:
        return Ready.model_validate_json(line).protocol == PROTOCOL
    except ValidationError:
        return False
