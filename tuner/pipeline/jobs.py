"""What a worker does with a job, and how each way to fail is named."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import torch
from torch._inductor.exc import InductorError

from registry.errors import DeviceError, InvalidInput, PlanConflict, TunerError
from registry.record import FailureKind
from tuner.detect import detect_environment
from tuner.pipeline.device import Device, own_pss_bytes
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.proof import QualityRejectedError
from tuner.pipeline.request import Report
from tuner.pipeline.tracing import profile_plan
from tuner.pipeline.trial import TrialRun
from tuner.protocol import (
    PROTOCOL,
    EnvironmentJob,
    EnvironmentResult,
    Event,
    Hello,
    InventoryJob,
    InventoryResult,
    ProfileJob,
    Result,
    TrialJob,
    WorkerFailure,
)
from tuner.version import __version__

Send = Callable[[Event], None]
AnyJob = EnvironmentJob | InventoryJob | ProfileJob | TrialJob

LIBRARY_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    NotImplementedError,
    AttributeError,
    LookupError,
    OSError,
    ImportError,
)
"""How libraries report what they cannot do. Any other exception ends the process, and the parent
names the crash."""


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
        send(_result(job, report, import_s))
    except (TunerError, *LIBRARY_ERRORS) as error:
        traceback.print_exception(error, file=sys.stderr)
        send(WorkerFailure(kind=failure_kind(error), message=_message(error)))
        return 1
    return 0


def _result(job: AnyJob, report: Report, import_s: float) -> Result:
    if isinstance(job, EnvironmentJob):
        return EnvironmentResult()
    if isinstance(job, InventoryJob):
        return InventoryResult(inventory=take_inventory(job.model, job.workload, report))
    if isinstance(job, ProfileJob):
        return profile_plan(job, _trial_run(job.trial, import_s, report), report)
    return _trial_run(job, import_s, report).run()


def _trial_run(job: TrialJob, import_s: float, report: Report) -> TrialRun:
    return TrialRun(job, Device(job.device_index, job.budget_bytes), import_s, report)


def _device_index(job: AnyJob) -> int | None:
    if isinstance(job, InventoryJob):
        return None
    return job.trial.device_index if isinstance(job, ProfileJob) else job.device_index


def failure_kind(error: Exception) -> FailureKind:
    """Libraries report what they cannot do as RuntimeError and the like; memory by its text."""
    if isinstance(error, QualityRejectedError):
        return "rejected_quality"
    if isinstance(error, InvalidInput | PlanConflict | DeviceError):
        return "unsupported"
    if isinstance(error, TunerError):
        return "error"
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text.lower():
        return "out_of_memory"
    if isinstance(error, NotImplementedError | InductorError | ImportError):
        return "unsupported"
    return "unsupported" if "not supported" in text else "error"


def _message(error: Exception) -> str:
    """One line for a library's error; our own say what to do in a second."""
    if isinstance(error, TunerError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
