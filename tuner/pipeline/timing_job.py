"""The job that times blocks and layers: each target's timing is sent as soon as there is one."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cached_property

import torch

from registry.errors import TunerError
from registry.timing import Timing, TimingKey, TimingOutcome
from registry.workload import Shape
from tuner.pipeline.block_inputs import BlockShop
from tuner.pipeline.block_timing import block_contestant
from tuner.pipeline.dtypes import DTYPES
from tuner.pipeline.failures import LIBRARY_ERRORS, failure_kind, message_of
from tuner.pipeline.layer_timing import Activations, layer_contestant
from tuner.pipeline.request import Report
from tuner.pipeline.scoring import NotFiniteError
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.stopwatch import FIRST_BURSTS, Contestant, Stopwatch, race
from tuner.protocol import TimingDone, TimingJob, TimingResult, TimingTarget

Send = Callable[[TimingDone], None]
Place = tuple[str, Shape]
"""A block's name and the request it is called in."""

DEVICE_IS_LOST = "CUDA error"
"""After such an error nothing in this process runs on the device again."""
COMPILED_VERSIONS = 256
"""Every choice of one block is another compiled version of one function."""


def time_targets(job: TimingJob, device: torch.device, send: Send, report: Report) -> TimingResult:
    """Raises InvalidInput for a target that the model does not have; a target that fails is sent as
    a failed timing, and the next one is begun."""
    torch._dynamo.config.recompile_limit = COMPILED_VERSIONS
    torch._dynamo.config.accumulated_recompile_limit = COMPILED_VERSIONS
    places: dict[Place, list[TimingTarget]] = {}
    for target in job.targets:
        places.setdefault((target.path, target.shape), []).append(target)
    skeleton = build_skeleton(job.model, DTYPES[job.dtype])
    paths = tuple(dict.fromkeys(path for path, _ in places))
    shop = BlockShop(skeleton, job.model, paths, tuple({shape for _, shape in places}))
    progress = _Progress(report, len(job.targets))
    timed = 0
    for (path, shape), targets in places.items():
        timed += _Place(shop, path, shape, device, job.rounds, send, progress).time(targets)
        _forget()
    return TimingResult(timed=timed)


class _Progress:
    """Says each target as it begins: the first call of one is a long compilation."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    def begin(self, key: TimingKey) -> None:
        phase = "blocks" if key.kind == "block" else "layers"
        self._report(phase, self._done, self._total, f"{key.name} {key.scheme}")
        self._done += 1

    def still_there(self) -> None:
        self._report("blocks", self._done, self._total, "")


class _Place:
    """One block at one request, with all that is timed there."""

    def __init__(
        self,
        shop: BlockShop,
        path: str,
        shape: Shape,
        device: torch.device,
        rounds: int,
        send: Send,
        progress: _Progress,
    ) -> None:
        self._block = shop.block(path, device)
        self._arguments = shop.arguments(path, shape, device)
        self._watch, self._rounds = Stopwatch(device), rounds
        self._send, self._progress = send, progress

    def time(self, targets: Iterable[TimingTarget]) -> int:
        """How many have a time in the end. What was timed first is timed again, all in turn."""
        found = [self._first(target) for target in targets]
        contestants = [item for item in found if item is not None]
        self._progress.still_there()
        for item in contestants:
            item.samples_ms.clear()
        race(contestants, self._rounds)
        for item in contestants:
            self._send(TimingDone(timing=item.timing()))
        return len(contestants)

    @cached_property
    def _activations(self) -> Activations:
        return Activations(self._block, self._arguments)

    def _first(self, target: TimingTarget) -> Contestant | None:
        """Its first samples are sent at once: the job may be ended before the rounds are."""
        self._progress.begin(target.key)
        try:
            contestant = self._contestant(target)
            race([contestant], FIRST_BURSTS)
        except (TunerError, NotFiniteError, *LIBRARY_ERRORS) as error:
            if DEVICE_IS_LOST in str(error):
                raise
            traceback.print_exception(error, file=sys.stderr)
            self._send(TimingDone(timing=_failed(target.key, error)))
            return None
        self._send(TimingDone(timing=contestant.timing()))
        return contestant

    def _contestant(self, target: TimingTarget) -> Contestant:
        if target.key.kind == "linear":
            return layer_contestant(self._activations, target, self._watch)
        return block_contestant(self._block, self._arguments, target, self._watch)


def _failed(key: TimingKey, error: Exception) -> Timing:
    outcome: TimingOutcome = "unsupported" if failure_kind(error) == "unsupported" else "failed"
    return Timing(key=key, outcome=outcome, samples=0, message=message_of(error))


def _forget() -> None:
    """What one block compiled and held, before the next one."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
