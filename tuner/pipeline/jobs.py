"""What a worker does with a job, and how each way to fail is named."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from registry.errors import TunerError
from tuner.detect import detect_environment
from tuner.pipeline.device import Device, own_pss_bytes
from tuner.pipeline.failures import LIBRARY_ERRORS, failure_kind, message_of
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.request import Report
from tuner.pipeline.timing_job import time_targets
from tuner.pipeline.tracing import profile_plan
from tuner.pipeline.trial import TrialRun
from tuner.protocol import (
    PROTOCOL,
    AnyJob,
    EnvironmentJob,
    EnvironmentResult,
    Event,
    Hello,
    InventoryJob,
    InventoryResult,
    ProfileJob,
    Result,
    TimingJob,
    TrialJob,
    WorkerFailure,
)
from tuner.version import __version__

Send = Callable[[Event], None]


def run_job(job: AnyJob, send: Send, report: Report, import_s: float) -> int:
    """Say hello, do the job, send its result or why there is none. Returns the exit code.

    The traceback of a failure goes to the log alone.
    """
    send(
        Hello(
            protocol=PROTOCOL,
            tuner_version=__version__,
            environment=detect_environment(_device_index(job)),
            host_baseline_bytes=own_pss_bytes(),
            import_s=import_s,
        )
    )
    try:
        send(_result(job, send, report, import_s))
    except (TunerError, *LIBRARY_ERRORS) as error:
        traceback.print_exception(error, file=sys.stderr)
        send(WorkerFailure(kind=failure_kind(error), message=message_of(error)))
        return 1
    return 0


def _result(job: AnyJob, send: Send, report: Report, import_s: float) -> Result:
    if isinstance(job, EnvironmentJob):
        return EnvironmentResult()
    if isinstance(job, InventoryJob):
        return InventoryResult(inventory=take_inventory(job.model, job.workload, report))
    if isinstance(job, ProfileJob):
        return profile_plan(job, _trial_run(job.trial, import_s, report), report)
    if isinstance(job, TimingJob):
        device = Device(job.device_index, job.budget_bytes)
        return time_targets(job, device.torch_device, send, report)
    return _trial_run(job, import_s, report).run()


def _trial_run(job: TrialJob, import_s: float, report: Report) -> TrialRun:
    return TrialRun(job, Device(job.device_index, job.budget_bytes), import_s, report)


def _device_index(job: AnyJob) -> int | None:
    if isinstance(job, InventoryJob):
        return None
    return job.trial.device_index if isinstance(job, ProfileJob) else job.device_index
