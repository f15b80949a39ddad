"""How what libraries raise is named and told."""

from __future__ import annotations

import torch
from torch._inductor.exc import InductorError

from registry.errors import DeviceError, InvalidInput, PlanConflict, TunerError
from registry.record import FailureKind
from tuner.pipeline.proof import QualityRejectedError

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


def message_of(error: Exception) -> str:
    """One line for a library's error; our own say what to do in a second."""
    if isinstance(error, TunerError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
