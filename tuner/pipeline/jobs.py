"""What a worker does with a job, and how each way to fail is named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._inductor.exc import InductorError

from registry.errors import DeviceError, InvalidInput, PlanConflict, TunerError, UnknownModel
from registry.record import FailureKind
from tuner.detect import detect_environment
from tuner.pipeline.device import Device, own_pss_bytes
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.trial import QualityRejectedError, Report, TrialRun
from tuner.protocol import (
    PROTOCOL,
    EnvironmentJob,
    EnvironmentResult,
    Event,
    Hello,
    InventoryJob,
    InventoryResult,
    Result,
    TrialJob,
    WorkerFailure,
)
from tuner.version import __version__

Send = Callable[[Event], None]
AnyJob = EnvironmentJob | InventoryJob | TrialJob


def run_job(job: AnyJob, send: Send, report: Report, import_s: float) -> int:
    """Say hello, do the job, send its result or why there is none. Returns the exit code.

    Any other exception is left to end the process: its traceback goes to the log, and the parent
    names the crash.
    """
    device_index = None if isinstance(job, InventoryJob) else job.device_index
    send(
        Hello(
            protocol=PROTOCOL,
            tuner_version=__version__,
            environment=detect_environment(device_index),
            host_baseline_bytes=own_pss_bytes(),
            import_s=import_s,
        )
    )
    try:
        send(_result(job, report, import_s))
    except torch.OutOfMemoryError as error:
        return _failed(send, "out_of_memory", str(error).splitlines()[0])
    except QualityRejectedError as error:
        return _failed(send, "rejected_quality", error.message)
    except (InvalidInput, PlanConflict, DeviceError, UnknownModel) as error:
        return _failed(send, "unsupported", str(error))
    except TunerError as error:
        return _failed(send, "error", str(error))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        return _failed(send, _kind(error), _describe(error))
    return 0


def _result(job: AnyJob, report: Report, import_s: float) -> Result:
    if isinstance(job, EnvironmentJob):
        return EnvironmentResult()
    if isinstance(job, InventoryJob):
        return InventoryResult(inventory=take_inventory(job.model, job.workload, report))
    device = Device(job.device_index, job.budget_bytes)
    return TrialRun(job, device, import_s, report).run()


def _kind(error: Exception) -> FailureKind:
    """Libraries report what they cannot do as RuntimeError and the like; memory by its text."""
    text = str(error)
    if "out of memory" in text.lower():
        return "out_of_memory"
    if isinstance(error, NotImplementedError | InductorError) or "not supported" in text:
        return "unsupported"
    return "error"


def _describe(error: Exception) -> str:
    import traceback

    traceback.print_exception(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _failed(send: Send, kind: FailureKind, message: str) -> int:
    send(WorkerFailure(kind=kind, message=message))
    return 1
