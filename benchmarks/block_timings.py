"""Timed blocks for recorded trials: taken by a recording, and predictions made from them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.recorded import RecordedTrial
from benchmarks.replay import Landscape
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.timing import Timing, TimingKey
from registry.workload import Shape, Workload
from tuner import catalog
from tuner.block_kinds import Bench
from tuner.block_rung import Timer, fastest_quantizations, rung_cost
from tuner.block_sums import BlockSums, measured_rest_ms
from tuner.block_targets import (
    block_targets,
    choices_among,
    kinds_at,
    layer_targets,
    typical_shape,
)
from tuner.candidate import Candidate
from tuner.corrections import learn
from tuner.cost_model import CostModel
from tuner.protocol import TimingTarget
from tuner.publishing import measured
from tuner.timing_file import parse_timings


def take_timings(
    inventory: ModelInventory,
    bench: Bench,
    workload: Workload,
    plans: Sequence[Plan],
    timer: Timer,
    note: Callable[[str], None],
) -> tuple[Timing, ...]:
    """What the block rung of a study would time: blocks first, then single layers under what
    makes blocks faster. All of it, whether that pays or not."""
    shape = typical_shape(workload)
    kinds, choices = kinds_at(inventory, shape), choices_among(plans, inventory.denoiser.name)
    found: dict[TimingKey, Timing] = {}

    def take(targets: Sequence[TimingTarget]) -> None:
        timed, failure = timer(targets, None) if targets else ((), None)
        found.update({item.key: item for item in timed})
        if failure is not None:
            note(f"timing of blocks ended early: {failure.kind}: {failure.message}")

    take(block_targets(kinds, bench, shape, choices))
    sums = BlockSums(kinds, bench, shape, found, quantizations=choices.quantizations)
    quantized = [item for item in choices.quantizations if item.scheme != "none"]
    take(layer_targets(kinds, bench, shape, fastest_quantizations(sums, quantized)))
    return tuple(found.values())


def read_timings(paths: Iterable[Path]) -> dict[TimingKey, Timing]:
    """Of files as `tuner autoquant export` writes them. Raises InvalidInput."""
    found: dict[TimingKey, Timing] = {}
    for path in paths:
        file = parse_timings(path.read_bytes(), datetime.now(UTC))
        found |= {item.timing.key: item.timing for item in file.timings}
    return found


class Foreseen:
    """What would have been predicted of a landscape's plans, had these blocks been timed."""

    def __init__(self, landscape: Landscape, timings: Mapping[TimingKey, Timing]) -> None:
        self._landscape = landscape
        self._baseline = landscape.baseline
        self._inventory = catalog.shipped_inventory(landscape.baseline.model.name)
        self._timings = timings
        self._plans = [item.plan for item in landscape.candidates]

    def candidates(self) -> tuple[Candidate, ...] | None:
        """The baseline last. None for a model that this release ships no inventory of, and where
        no timing is of this machine and these blocks."""
        sums = self._sums()
        if sums is None or self._inventory is None:
            return None
        environment, workload = self._baseline.environment, self._baseline.workload
        known = (self._baseline.trial.plan, self._baseline.roofline, measured(self._baseline.trial))
        model = CostModel(
            self._inventory,
            environment.hardware,
            learn([known], self._inventory),
            cpu_isa=environment.runtime.cpu_isa,
            blocks=sums,
        )
        steps = self._baseline.steps
        plans = (*self._plans, self._baseline.trial.plan)
        return tuple(Candidate(p, model.estimate(p, workload, steps)) for p in plans)

    def rung_s(self) -> float:
        """Seconds that the rung is predicted to take: its blocks, and a worker's start."""
        if self._inventory is None:
            return 0.0
        shape, choices = self._shape, choices_among(self._plans, self._landscape.denoiser)
        targets = block_targets(kinds_at(self._inventory, shape), self._bench, shape, choices)
        device = self._baseline.environment.hardware.device
        return rung_cost(targets, (), choices, measured(self._baseline.trial), device).rung_s

    def _sums(self) -> BlockSums | None:
        if self._inventory is None:
            return None
        denoiser = self._landscape.denoiser
        sums = BlockSums(
            kinds_at(self._inventory, self._shape),
            self._bench,
            self._shape,
            self._timings,
            quantizations=choices_among(self._plans, denoiser).quantizations,
        )
        if sums.blocks_ms() is None:
            return None
        baseline = self._baseline.trial
        rest_ms = measured_rest_ms(sums, baseline.plan, measured(baseline), denoiser)
        return replace(sums, rest_ms=rest_ms)

    @property
    def _shape(self) -> Shape:
        return typical_shape(self._baseline.workload)

    @property
    def _bench(self) -> Bench:
        return Bench(self._baseline.environment, self._baseline.trial.plan.pipeline.dtype)


def step_errors(items: Iterable[RecordedTrial], candidates: Sequence[Candidate]) -> list[float]:
    """Sizes of the relative errors of predicted steps, over trials that measured some."""
    predicted = {item.plan.digest: item.estimate.step_ms for item in candidates}
    return [
        abs(predicted[item.trial.plan.digest] / item.trial.measurement.step_ms - 1)
        for item in items
        if item.trial.measurement is not None and item.trial.plan.digest in predicted
    ]
