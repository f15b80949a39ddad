"""Runs one job in a worker process and says how it ended. Nothing survives it.

A crash, a hang, a segfault, running out of memory or a grandchild left behind costs one trial:
when `run` returns or raises, every process of the worker is dead.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.errors import DeviceError
from registry.plan import ProcessOptions
from registry.record import Failure
from tuner import endings, host
from tuner.config import load_settings
from tuner.detect import Detection
from tuner.device import open_gpu_monitor
from tuner.endings import Exit
from tuner.event_stream import AnyEvent
from tuner.foreign import witness_for
from tuner.locks import DeviceLock
from tuner.measured import complete
from tuner.nvml import Nvml, NvmlUnavailable, open_nvml
from tuner.processes import ProcessTree, adopting_orphans, end_left_behind
from tuner.protocol import EnvironmentJob, Hello, InventoryJob, ProfileJob, Result, TrialJob
from tuner.sampler import Sample, Sampler
from tuner.signals import sigterm_interrupts
from tuner.spawn import LOG_FILE, Worker, start_worker, worker_environment, write_job
from tuner.watch import Limits, Watch

__all__ = ["Limits", "Outcome", "Runner"]

AnyJob = TrialJob | ProfileJob | InventoryJob | EnvironmentJob
WORKER_MODULE = "tuner.pipeline.worker"
KILL_GRACE_S = 3.0


@dataclass(frozen=True)
class Outcome:
    """Exactly one of `result` and `failure` is set.

    `log_path` holds what the worker and its libraries printed, `job.json` beside it what was asked;
    the folder is the caller's to remove. Growth is over the device's level at the start (GPU) or
    the worker's baseline (CPU); `host_peak_bytes` is the PSS of the worker's tree, compilers apart.
    `contaminated` says what others did on the device meanwhile, if anything.
    """

    result: Result | None
    failure: Failure | None
    hello: Hello | None
    duration_s: float
    log_path: Path
    device_growth_peak_bytes: int
    host_peak_bytes: int
    contaminated: str | None = None


class Runner:
    """Starts workers for one device, one at a time.

    `python` is the interpreter that runs trials. `lock`, if given, must be held; every worker
    inherits it. `environ` is what workers inherit, by default the environment as configured.
    `worker_command` replaces `python -m tuner.pipeline.worker`.
    """

    def __init__(
        self,
        python: str,
        detection: Detection,
        lock: DeviceLock | None,
        scratch_dir: Path,
        *,
        environ: Mapping[str, str] | None = None,
        worker_command: Sequence[str] | None = None,
        nvml: Callable[[], Nvml] = open_nvml,
        clock: Callable[[], float] = time.monotonic,
        kill_grace_s: float = KILL_GRACE_S,
    ) -> None:
        self._python = python
        self._detection = detection
        self._lock = lock
        self._scratch_dir = scratch_dir.absolute()
        self._environ = load_settings().environ if environ is None else environ
        self._command = worker_command or (python, "-m", WORKER_MODULE)
        self._nvml = nvml
        self._clock = clock
        self._kill_grace_s = kill_grace_s

    def run(
        self,
        job: AnyJob,
        limits: Limits,
        on_event: Callable[[AnyEvent], None] | None = None,
        *,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> Outcome:
        """Runs the job to its end. Failures of the worker are in the outcome.

        The job's `device_index` is set to what the worker will see. KeyboardInterrupt passes
        through, SIGTERM becomes Interrupted, both after the worker is dead. Raises DeviceError if
        the driver dies or a process cannot be killed, TrialFailed if the scratch folder cannot be
        written.
        """
        end_left_behind()
        try:
            with adopting_orphans(), sigterm_interrupts():
                return self._run(job, limits, on_event, on_sample)
        except NvmlUnavailable as error:
            raise DeviceError(error.message, hint=error.hint) from error

    def _run(
        self,
        job: AnyJob,
        limits: Limits,
        on_event: Callable[[AnyEvent], None] | None,
        on_sample: Callable[[Sample], None] | None,
    ) -> Outcome:
        trial_id = secrets.token_hex(8)
        folder = self._scratch_dir / f"trial-{trial_id}"
        write_job(folder, self._addressed(job).model_dump_json().encode())
        monitor = open_gpu_monitor(self._detection, nvml=self._nvml)
        witness, oom_kills, started_s = witness_for(monitor), host.oom_kills(), self._clock()
        try:
            worker = self._start(job, folder, trial_id)
        except OSError as error:
            return _not_started(endings.cannot_start(self._python, error), folder)
        with self._ending(worker, trial_id) as tree:
            sampler = Sampler(tree, monitor, self._clock)
            watch = Watch(
                worker,
                limits,
                sampler,
                self._clock,
                on_event=on_event,
                on_sample=on_sample,
                cap_device=monitor is None,
            )
            watch.until_end()
            if watch.stop is not None and watch.stop.kind == "out_of_memory":
                tree.end(0)
        contaminated = witness.verdict()
        return Outcome(
            result=complete(watch.result, sampler, self._detection, contaminated),
            failure=self._failure(watch, worker, oom_killed=host.oom_kills() > oom_kills),
            hello=watch.hello,
            duration_s=self._clock() - started_s,
            log_path=worker.log_path,
            device_growth_peak_bytes=sampler.device_growth_peak_bytes,
            host_peak_bytes=sampler.host_peak_bytes,
            contaminated=contaminated,
        )

    @contextmanager
    def _ending(self, worker: Worker, trial_id: str) -> Iterator[ProcessTree]:
        """Whatever happens inside: afterwards the worker and all it started are dead."""
        tree = ProcessTree(worker.process.pid, trial_id)
        try:
            if self._lock is not None:
                self._lock.note_worker(worker.process.pid)
            yield tree
        finally:
            # First everybody, then the wait: it frees the worker's pid for strangers.
            tree.end(self._kill_grace_s)
            worker.process.wait()
            os.close(worker.events)
            if self._lock is not None:
                self._lock.note_worker(None)

    def _start(self, job: AnyJob, folder: Path, trial_id: str) -> Worker:
        descriptor = self._lock.descriptor if self._lock is not None else None
        trial = _trial_of(job)
        return start_worker(
            self._command,
            worker_environment(
                self._environ,
                trial.plan.process if trial else ProcessOptions(),
                trial.compile_cache_dir if trial else None,
                self._detection.device_uuid,
            ),
            folder,
            trial_id=trial_id,
            kept_descriptors=() if descriptor is None else (descriptor,),
        )

    def _addressed(self, job: AnyJob) -> AnyJob:
        """The worker sees one GPU, as CUDA device 0, or none."""
        if isinstance(job, InventoryJob):
            return job
        index = {"device_index": None if self._detection.device_uuid is None else 0}
        if isinstance(job, ProfileJob):
            return job.model_copy(update={"trial": job.trial.model_copy(update=index)})
        return job.model_copy(update=index)

    def _failure(self, watch: Watch, worker: Worker, *, oom_killed: bool) -> Failure | None:
        if watch.result is not None:
            return None
        if watch.failure is not None:
            return Failure(kind=watch.failure.kind, message=watch.failure.message)
        if watch.other_protocol is not None:
            return endings.other_protocol(self._python, watch.other_protocol)
        if watch.stop is not None:
            return Failure(kind=watch.stop.kind, message=watch.stop.message)
        return endings.classify_exit(
            Exit(
                code=worker.process.returncode,
                log=endings.read_tail(worker.log_path),
                python=self._python,
                greeted=watch.hello is not None,
                phase=watch.phase,
                oom_killed=oom_killed,
            )
        )


def _trial_of(job: AnyJob) -> TrialJob | None:
    if isinstance(job, ProfileJob):
        return job.trial
    return job if isinstance(job, TrialJob) else None


def _not_started(failure: Failure, folder: Path) -> Outcome:
    return Outcome(
        result=None,
        failure=failure,
        hello=None,
        duration_s=0.0,
        log_path=folder / LOG_FILE,
        device_growth_peak_bytes=0,
        host_peak_bytes=0,
    )
