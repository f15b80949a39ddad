"""How a failure inside a worker is named, and what of it is told."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch

from registry.errors import (
    DeviceError,
    InvalidInput,
    InvalidPlan,
    PlanConflict,
    UnknownModel,
    UntrustedArtifact,
)
from registry.record import FailureKind
from tuner.pipeline.failures import failure_kind
from tuner.pipeline.jobs import run_job
from tuner.pipeline.proof import QualityRejectedError
from tuner.protocol import EnvironmentJob, Event, WorkerFailure

KINDS: list[tuple[Exception, FailureKind]] = [
    (InvalidInput("x"), "unsupported"),
    (InvalidPlan("x"), "unsupported"),
    (UnknownModel("x"), "unsupported"),
    (PlanConflict("x"), "unsupported"),
    (DeviceError("x"), "unsupported"),
    (QualityRejectedError("x"), "rejected_quality"),
    (UntrustedArtifact("x"), "error"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out_of_memory"),
    (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
    (RuntimeError("flash attention is not supported on this device"), "unsupported"),
    (NotImplementedError("no kernel"), "unsupported"),
    (ImportError("sageattention"), "unsupported"),
    (RuntimeError("shapes differ"), "error"),
    (KeyError("weight"), "error"),
    (OSError("disk"), "error"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda item: repr(item)[:60])
def test_every_failure_has_a_kind(error: Exception, kind: FailureKind) -> None:
    assert failure_kind(error) == kind


def said_by(
    job: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, log: io.StringIO
) -> list[Event]:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("tuner.pipeline.jobs._result", fail)
    monkeypatch.setattr(sys, "stderr", log)
    events: list[Event] = []
    assert run_job(job, events.append, lambda *_: None, 0.1) == 1
    return events


def test_tracebacks_go_to_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    error = RuntimeError("first line\n\n  second line")
    events = said_by(EnvironmentJob(), monkeypatch, error, log)
    assert events[-1] == WorkerFailure(kind="error", message="RuntimeError: first line")
    assert "Traceback" in log.getvalue()
    assert "second line" in log.getvalue()


def test_our_own_errors_keep_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    error = InvalidInput("no such folder", hint="Pass another.")
    events = said_by(EnvironmentJob(), monkeypatch, error, io.StringIO())
    assert events[-1] == WorkerFailure(kind="unsupported", message="no such folder\nPass another.")


def test_errors_of_our_own_making_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a library's word about a plan: the parent names the crash."""
    with pytest.raises(ZeroDivisionError):
        said_by(EnvironmentJob(), monkeypatch, ZeroDivisionError(), io.StringIO())
