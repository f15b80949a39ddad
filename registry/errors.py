"""Every error a user can meet, as one tree.

    TunerError                    exit code 1; base of all that follow
    ├── InvalidInput              exit code 2; a value the user gave cannot be used
    │   ├── UnknownModel
    │   ├── InvalidPlan
    │   └── NothingFits           no plan fits the budget; says the smallest that would
    ├── NoPlan                    exit code 3; the registry holds no answer
    ├── RegistryError             exit code 4; the store cannot be used
    │   ├── RegistryMissing       nothing has been stored there yet
    │   ├── RegistryReadOnly
    │   ├── RegistryCorrupt
    │   ├── RegistryTooNew        written by a newer release; nothing was changed
    │   ├── RegistryTooOld        needs `tuner registry upgrade`
    │   ├── RegistryFull          no space left; nothing half-written remains
    │   ├── RegistryConflict      contradicts what is there, or names what is not
    │   ├── RegistryUnreachable   a registry over HTTP did not answer
    │   ├── AccessDenied          a registry over HTTP wants another token
    │   ├── LeaseLost             the job was cancelled, paused, or given to another daemon
    │   └── RecordNotFound
    │       └── AmbiguousId       more than one begins with the digits given
    ├── DeviceError               exit code 5; the GPU or its driver cannot be used
    │   └── DeviceBusy            another run or a foreign process holds it
    ├── PlanConflict              exit code 6; the plan cannot be applied to this pipeline
    ├── TrialFailed               exit code 7; a worker process did not give a result
    ├── UntrustedArtifact         exit code 8; no valid signature by a trusted key, or malformed
    │   └── TrustListUnreadable   so that no signature can be verified
    └── Interrupted               exit code 130; stopped by the user, nothing half-done

Inside a study a failed trial is a value (`registry.record.Failure`), never one of these.
"""

from __future__ import annotations


class TunerError(Exception):
    """Base of every error this project raises on purpose.

    `message` names the offending value and what is accepted; `hint` says what to do next.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InvalidInput(TunerError):
    exit_code = 2


class UnknownModel(InvalidInput):
    pass


class InvalidPlan(InvalidInput):
    pass


class NothingFits(InvalidInput):
    pass


class NoPlan(TunerError):
    exit_code = 3


class RegistryError(TunerError):
    exit_code = 4


class RegistryMissing(RegistryError):
    pass


class RegistryReadOnly(RegistryError):
    pass


class RegistryCorrupt(RegistryError):
    pass


class RegistryTooNew(RegistryError):
    pass


class RegistryTooOld(RegistryError):
    pass


class RegistryFull(RegistryError):
    pass


class RegistryConflict(RegistryError):
    pass


class RegistryUnreachable(RegistryError):
    pass


class AccessDenied(RegistryError):
    pass


class LeaseLost(RegistryError):
    pass


class RecordNotFound(RegistryError):
    pass


class AmbiguousId(RecordNotFound):
    pass


class DeviceError(TunerError):
    exit_code = 5


class DeviceBusy(DeviceError):
    pass


class PlanConflict(TunerError):
    exit_code = 6


class TrialFailed(TunerError):
    exit_code = 7


class UntrustedArtifact(TunerError):
    exit_code = 8


class TrustListUnreadable(UntrustedArtifact):
    pass


class Interrupted(TunerError):
    exit_code = 130
