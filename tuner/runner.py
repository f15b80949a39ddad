"""Runs one job in a worker process and says how it ended. Nothing survives it.

A crash, a hang, a segfault, running out of memory or a grandchild left behind costs one trial:
when `run` returns or raises, every process of the worker is dead.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from registry.errors import DeviceBusy, DeviceError
from registry.plan import ProcessOptions
from tuner import endings, host
from tuner.config import load_settings
from tuner.detect import Detection
from tuner.device import GpuMonitor, open_gpu_monitor
from tuner.foreign import Arrivals, Witness, witness_for
from tuner.locks import DeviceLock
from tuner.measured import complete
from tuner.nvml import Nvml, NvmlUnavailable, open_nvml
from tuner.outcome import Outcome, failure_of, not_started
from tuner.processes import ProcessTree, adopting_orphans, end_left_behind
from tuner.protocol import (
    AnyJob,
    EnvironmentJob,
    Event,
    InventoryJob,
    ProfileJob,
    TimingJob,
    TrialJob,
)
from tuner.sampler import Sample, Sampler
from tuner.signals import sigterm_interrupts
from tuner.spawn import LOG_FILE, Worker, start_worker, worker_environment, write_job
from tuner.standby import Ahead
from tuner.watch import Limits, Watch

__all__ = ["Limits", "Outcome", "Runner"]

WORKER_MODULE = "tuner.pipeline.worker"
KILL_GRACE_S = 3.0


@dataclass(frozen=True)
class _Asked:
    """One job, and who hears of it."""

    job: AnyJob
    limits: Limits
    on_event: Callable[[Event], None] | None
    on_sample: Callable[[Sample], None] | None

    @property
    def job_json(self) -> bytes:
        return self.job.model_dump_json().encode()


@dataclass(frozen=True)
class _Before:
    """The device and the machine before the worker takes anything of them."""

    monitor: GpuMonitor | None
    witness: Witness
    oom_kills: int


class Runner:
    """Starts workers for one device, one at a time.

    `python` is the interpreter that runs trials. `lock`, if given, must be held; every worker
    inherits it. `environ` is what workers inherit, by default the environment as configured.
    `worker_command` replaces `python -m tuner.pipeline.worker`. With `ahead` the next worker is
    started while one runs; then `close` must be called before the lock is released. Set
    `yields` to have a trial ended when another process opens the GPU.
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
        ahead: bool = False,
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
        self.yields = False
        common = self._environment_of(EnvironmentJob())
        self._ahead = Ahead(self._scratch_dir, common, self._start_ahead, clock) if ahead else None

    def run(
        self,
        job: AnyJob,
        limits: Limits,
        on_event: Callable[[Event], None] | None = None,
        *,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> Outcome:
        """Runs the job to its end. Failures of the worker are in the outcome.

        The job's `device_index` is set to what the worker will see. KeyboardInterrupt passes
        through, SIGTERM becomes Interrupted, both after the worker is dead. Raises DeviceError if
        the driver dies or a process cannot be killed, TrialFailed if the scratch folder cannot be
        written, and DeviceBusy where the trial gave way to another process.
        """
        end_left_behind()
        try:
            with adopting_orphans(), sigterm_interrupts():
                return self._run(_Asked(self._addressed(job), limits, on_event, on_sample))
        except NvmlUnavailable as error:
            raise DeviceError(error.message, hint=error.hint) from error

    def close(self) -> None:
        """Ends the worker that was started ahead, if there is one. Jobs may follow all the same."""
        if self._ahead is not None:
            self._ahead.close()

    def _run(self, asked: _Asked) -> Outcome:
        started_s, environment = self._clock(), self._environment_of(asked.job)
        before = self._look()
        standby = self._ahead.taken(environment) if self._ahead is not None else None
        if standby is not None and self._ahead is not None:
            waited_s = self._clock() - started_s
            begin = partial(standby.hand_over, asked.job_json, environment)
            outcome = self._watched(asked, standby.worker, before, started_s, begin)
            if outcome.hello is not None:
                hidden_s = max(0.0, outcome.hello.import_s - waited_s)
                return replace(outcome, hidden_s=hidden_s)
            self._ahead.failed()
            shutil.rmtree(standby.worker.folder, ignore_errors=True)
            before = self._look()
        return self._run_fresh(asked, environment, before, started_s)

    def _run_fresh(
        self, asked: _Asked, environment: Mapping[str, str], before: _Before, started_s: float
    ) -> Outcome:
        trial_id = secrets.token_hex(8)
        folder = self._scratch_dir / f"trial-{trial_id}"
        write_job(folder, asked.job_json)
        try:
            worker = self._start(folder, trial_id, environment)
        except OSError as error:
            return not_started(endings.cannot_start(self._python, error), folder / LOG_FILE)
        return self._watched(asked, worker, before, started_s)

    def _watched(
        self,
        asked: _Asked,
        worker: Worker,
        before: _Before,
        started_s: float,
        begin: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Watches the worker to its end. `begin` gives it its job where it has none yet: not before
        the device's level is known."""
        with self._ending(worker) as tree:
            sampler = Sampler(tree, before.monitor, self._clock, self._shared_bytes)
            watch = Watch(
                worker,
                asked.limits,
                sampler,
                self._clock,
                on_event=partial(self._heard, asked),
                on_sample=asked.on_sample,
                cap_device=before.monitor is None,
                give_way=self._give_way(before, tree),
            )
            begin()
            watch.until_end()
            if watch.stop is not None and watch.stop.kind == "out_of_memory":
                tree.end(0)
            if watch.gave_way is not None:
                tree.end(0)
                raise DeviceBusy(
                    f"the trial was ended: {watch.gave_way}",
                    hint="What was measured before is kept; the same run goes on from there.",
                )
        contaminated = before.witness.verdict()
        return Outcome(
            result=complete(watch.result, sampler, self._detection, contaminated),
            failure=failure_of(
                watch, worker, self._python, oom_killed=host.oom_kills() > before.oom_kills
            ),
            hello=watch.hello,
            duration_s=self._clock() - started_s,
            log_path=worker.log_path,
            device_growth_peak_bytes=sampler.device_growth_peak_bytes,
            host_peak_bytes=sampler.host_peak_bytes,
            contaminated=contaminated,
        )

    def _look(self) -> _Before:
        monitor = open_gpu_monitor(self._detection, nvml=self._nvml)
        return _Before(monitor, witness_for(monitor), host.oom_kills())

    def _give_way(self, before: _Before, tree: ProcessTree) -> Callable[[], str | None]:
        if before.monitor is None or not self.yields:
            return lambda: None
        arrivals = Arrivals(before.monitor, self._clock)
        return lambda: arrivals.look(lambda: [process.pid for process in tree.members()])

    def _shared_bytes(self) -> int:
        return self._ahead.shared_bytes if self._ahead is not None else 0

    def _heard(self, asked: _Asked, event: Event) -> None:
        if self._ahead is not None:
            self._ahead.heard(event)
        if asked.on_event is not None:
            asked.on_event(event)

    @contextmanager
    def _ending(self, worker: Worker) -> Iterator[ProcessTree]:
        """Whatever happens inside: afterwards the worker and all it started are dead."""
        tree = ProcessTree(worker.process.pid, worker.trial_id)
        try:
            if self._lock is not None:
                self._lock.note_worker(worker.process.pid)
            yield tree
        finally:
            # First everybody, then the wait: it frees the worker's pid for strangers.
            tree.end(self._kill_grace_s)
            worker.process.wait()
            os.close(worker.events)
            if self._ahead is not None:
                self._ahead.trial_ended()
            if self._lock is not None:
                self._lock.note_worker(None)

    def _start(
        self, folder: Path, trial_id: str, environment: Mapping[str, str], *, ahead: bool = False
    ) -> Worker:
        descriptor = self._lock.descriptor if self._lock is not None else None
        return start_worker(
            self._command,
            environment,
            folder,
            trial_id=trial_id,
            kept_descriptors=() if descriptor is None else (descriptor,),
            ahead=ahead,
        )

    def _start_ahead(self, folder: Path, trial_id: str, environment: Mapping[str, str]) -> Worker:
        return self._start(folder, trial_id, environment, ahead=True)

    def _environment_of(self, job: AnyJob) -> dict[str, str]:
        trial = _trial_of(job)
        compiles = job if isinstance(job, TimingJob) else trial
        return worker_environment(
            self._environ,
            trial.plan.process if trial else ProcessOptions(),
            compiles.compile_cache_dir if compiles else None,
            self._detection.device_uuid,
        )

    def _addressed(self, job: AnyJob) -> AnyJob:
        """The worker sees one GPU, as CUDA device 0, or none."""
        if isinstance(job, InventoryJob):
            return job
        index = {"device_index": None if self._detection.device_uuid is None else 0}
        if isinstance(job, ProfileJob):
            return job.model_copy(update={"trial": job.trial.model_copy(update=index)})
        return job.model_copy(update=index)


def _trial_of(job: AnyJob) -> TrialJob | None:
    if isinstance(job, ProfileJob):
        return job.trial
    return job if isinstance(job, TrialJob) else None
