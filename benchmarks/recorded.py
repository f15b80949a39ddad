"""Trials kept as lines of JSON, one a line: written by `record_trials.py`, read by `search.py` and
`model_error.py`.

A line stands alone, so files of several machines or shards are put together with `cat`. A line that
was cut off, as by a full disk, is the last of its file and is passed over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from registry.base import Frozen
from registry.digest import digest
from registry.environment import Environment
from registry.errors import InvalidInput
from registry.record import Estimate, Rung, Trial
from registry.workload import ModelRef, Workload


class RecordedTrial(Frozen):
    """One finished trial with all that is needed to judge predictions by it, or to replay it.

    `trial.estimate` is what a study would have frozen before it: learned from the baseline where
    one ran (`is_baseline` marks that trial), the roofline's otherwise; `roofline` is the bare one.
    `model_key` is the inventory's (a local folder's holds no path), `family` the pipeline's class
    without its ending, `denoiser` its component. `dropped` is why the survey would not have tried
    the plan within `budget_bytes`. `steps` None is the pipeline's default number. `run` tells
    processes apart: shards run on several devices.
    """

    format: Literal[1] = 1
    model: ModelRef
    model_key: str
    family: str
    denoiser: str
    default_steps: int
    workload: Workload
    environment: Environment
    budget_bytes: int
    steps: int | None = None
    label: str
    is_baseline: bool = False
    dropped: str | None = None
    roofline: Estimate
    trial: Trial
    run: str

    @property
    def is_contaminated(self) -> bool:
        """Whether it was measured beside foreign load."""
        measured = self.trial.measurement
        return measured is not None and measured.contaminated is not None

    @property
    def key(self) -> str:
        """Equal for the same question: such a trial is not run again."""
        return trial_key(
            self.model_key,
            self.workload,
            self.environment,
            self.steps,
            self.trial.rung,
            self.trial.plan.digest,
        )


def trial_key(
    model_key: str,
    workload: Workload,
    environment: Environment,
    steps: int | None,
    rung: Rung,
    plan_digest: str,
) -> str:
    """The device counts by its kind and the libraries by their versions, not by the machine."""
    device = environment.hardware
    kind = [device.device, device.name, device.vram_bytes]
    runtime = environment.runtime.digest
    return digest([model_key, workload.digest, kind, runtime, steps, rung, plan_digest])


class TrialFile:
    """A file that several processes may append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self, *, clean: bool = False) -> frozenset[str]:
        """Of every trial in it, or of those alone that nothing foreign disturbed; none where it
        does not exist yet."""
        if not self.path.exists():
            return frozenset()
        return frozenset(item.key for item in self.read() if not (clean and item.is_contaminated))

    def read(self) -> Iterator[RecordedTrial]:
        """Raises InvalidInput naming the line that is not a recorded trial."""
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield RecordedTrial.model_validate_json(line)
            except ValidationError as error:
                if number == len(lines):
                    return
                raise self._unreadable(number, error) from None

    def append(self, item: RecordedTrial) -> None:
        """On the disk when this returns, and whole: writers take turns. Begins with a new line
        where the writer before was cut off."""
        line = item.model_dump_json().encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._drop_cut_off_line(file.fileno())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _drop_cut_off_line(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        while size and os.pread(descriptor, 1, size - 1) != b"\n":
            size -= 1
        os.ftruncate(descriptor, size)

    def _unreadable(self, number: int, error: ValidationError) -> InvalidInput:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        return InvalidInput(
            f"{self.path}, line {number} is not a recorded trial: {where}: {first['msg']}",
            hint="benchmarks/record_trials.py of this release writes them.",
        )


def read_all(paths: Iterable[Path]) -> tuple[RecordedTrial, ...]:
    """Of several files. Raises InvalidInput for one that is missing or damaged."""
    found: list[RecordedTrial] = []
    for path in paths:
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file of recorded trials")
        found += TrialFile(path).read()
    return tuple(found)
