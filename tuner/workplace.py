"""Where studies are run: a device that is ours alone, a registry, and workers to give jobs to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from registry.client import open_registry
from registry.errors import DeviceBusy, TrialFailed
from registry.leases import Lease
from registry.signing import SigningKeys
from registry.store import Registry
from tuner.clock import Clock, SystemClock
from tuner.config import Settings
from tuner.detect import Detection, detect
from tuner.events import Listener
from tuner.foreign import FOREIGN_BYTES
from tuner.locks import DeviceLock
from tuner.protocol import EnvironmentJob
from tuner.request import StudyOutcome, StudyRequest
from tuner.runner import Limits, Runner
from tuner.standby import standby_pays
from tuner.study import run_study
from tuner.units import format_bytes

HELLO_LIMIT_S = 120.0
"""What another interpreter may take to import torch and describe itself."""


@dataclass(frozen=True)
class Device:
    """What to tune on: `gpu` as in `--gpu`, `python` the interpreter of the trials (None: this
    one), whether others may be at work beside them, and whether a trial is ended when others
    come."""

    gpu: str | None = None
    python: Path | None = None
    share: bool = False
    yields: bool = False


@dataclass(frozen=True)
class Workplace:
    """What every study of one command shares."""

    settings: Settings
    detection: Detection
    registry: Registry
    runner: Runner
    clock: Clock


def study_at(
    place: Workplace, request: StudyRequest, listener: Listener, *, lease: Lease | None = None
) -> StudyOutcome:
    """`run_study` with all that a workplace holds; raises as that does."""
    return run_study(
        request,
        registry=place.registry,
        runner=place.runner,
        detection=place.detection,
        settings=place.settings,
        keys=SigningKeys(place.settings.config_dir),
        clock=place.clock,
        listener=listener,
        lease=lease,
    )


@contextmanager
def workplace(
    settings: Settings, device: Device, *, command: Sequence[str], clock: Clock | None = None
) -> Iterator[Workplace]:
    """The device is held until the end; `command` is shown to whoever finds it taken.

    Raises InvalidInput and DeviceError for a device that cannot be used, DeviceBusy for one that
    others use, RegistryError, and TrialFailed for an interpreter that runs no trials.
    """
    detection = detect(device.gpu, settings=settings, own_torch=device.python is None)
    refuse_a_device_in_use(detection, share=device.share)
    registry = open_registry(settings.registry, opening=settings.opening)
    registry.require_writable()
    with DeviceLock(detection.device_key, settings.locks_dir, command) as lock:
        runner = Runner(
            str(device.python or sys.executable),
            detection,
            lock,
            emptied(settings.scratch_dir / lock.path.stem),
            environ=settings.environ,
            ahead=standby_pays(detection),
        )
        runner.yields = device.yields
        with closing(runner):
            if device.python is not None:
                detection = as_seen_by_worker(runner, detection)
            yield Workplace(settings, detection, registry, runner, clock or SystemClock())


def refuse_a_device_in_use(detection: Detection, *, share: bool) -> None:
    """Beside a running app neither its figures nor ours would be true."""
    if detection.foreign_bytes >= FOREIGN_BYTES and not share:
        name = detection.environment.hardware.name
        raise DeviceBusy(
            f"other processes hold {format_bytes(detection.foreign_bytes)} of {name}",
            hint="Stop them, or tune beside them with --share: the figures are then marked.",
        )


def emptied(device_dir: Path) -> Path:
    """A device's scratch folder: under its lock, what lies there is a dead run's."""
    shutil.rmtree(device_dir, ignore_errors=True)
    return device_dir


def as_seen_by_worker(runner: Runner, detection: Detection) -> Detection:
    """The Environment of the interpreter that runs the trials, which is the one that counts."""
    outcome = runner.run(EnvironmentJob(), Limits(HELLO_LIMIT_S, HELLO_LIMIT_S))
    if outcome.hello is not None and outcome.failure is None:
        shutil.rmtree(outcome.log_path.parent, ignore_errors=True)
        return replace(detection, environment=outcome.hello.environment)
    reason = outcome.failure.message if outcome.failure else "it did not describe itself"
    raise TrialFailed(f"--python cannot run trials: {reason}", hint=f"Its log: {outcome.log_path}")
