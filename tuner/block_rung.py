"""The rung between bytes and whole denoisers: blocks and layers timed once, for every plan.

Run after the baseline and before the search, where it pays: it takes about as long as a few trials,
and stands for many. What the registry knows is not timed again. A run that has little time proves a
plan first of all: the rung takes none of what that needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import Plan, Quantization
from registry.record import Failure, Measurement, Trial
from registry.timing import Timing, TimingKey
from registry.workload import Workload
from tuner.block_kinds import Bench
from tuner.block_sums import BlockSums, measured_rest_ms
from tuner.block_targets import (
    Choices,
    block_targets,
    choices_among,
    kinds_at,
    layer_targets,
    typical_shape,
)
from tuner.clock import TimeLimit
from tuner.protocol import TimingTarget
from tuner.publishing import measured

BLOCK_S = {"cuda": 5.0, "cpu": 12.0}
LAYER_S = {"cuda": 1.5, "cpu": 3.0}
EAGER_S = 0.5
"""Seconds to compile and time one, by device. FLUX compiles its two kinds in 14 s on one H200
from nothing; on two cores of a CPU a tiny block took 7 to 15 s, a layer 2 to 5."""
SPARED_SHARE = 0.5
MOST_TRIALS = 16
"""Timed blocks spare this share of the trials that a search makes, one for each distinct denoiser
up to so many."""
LARGEST_SHARE = 0.2
"""Of the time left."""
STEPS_A_TRIAL = 10
"""To warm, to time, to compare with the reference."""
PROMISING = 2
"""Quantizations whose layers are timed singly: those that blocks show to be the fastest."""
SETTLED = ("measured", "unsupported")
"""Outcomes that are not tried again."""


class TimingStore(Protocol):
    """Where timings of this machine are kept."""

    def known(self, keys: Iterable[TimingKey]) -> Mapping[TimingKey, Timing]: ...

    def keep(self, timings: Sequence[Timing]) -> None: ...


class Timer(Protocol):
    """Runs one worker job; what it timed stands, however the job ended."""

    def __call__(
        self, targets: Sequence[TimingTarget], limit_s: float | None
    ) -> tuple[tuple[Timing, ...], Failure | None]: ...


@dataclass(frozen=True)
class RungCost:
    """Predicted seconds: of the rung, and of the trials that it spares. `reserved_s` is what the
    search needs after it to prove one plan."""

    rung_s: float
    spared_s: float
    reserved_s: float = 0.0

    def most_s(self, remaining_s: float) -> float:
        """What the rung may take of the time left: never what a proof needs."""
        return min(LARGEST_SHARE * remaining_s, remaining_s - self.reserved_s)

    def pays(self, remaining_s: float | None) -> bool:
        if remaining_s is not None and self.rung_s > self.most_s(remaining_s):
            return False
        return self.rung_s < self.spared_s


def rung_cost(
    blocks: Sequence[TimingTarget],
    layers: Sequence[TimingTarget],
    choices: Choices,
    baseline: Measurement,
    device: str,
) -> RungCost:
    """From how long the baseline took to start, load and step."""
    compiled = sum(target.key.context == "compiled" for target in blocks)
    timing_s = compiled * BLOCK_S[device] + (len(blocks) - compiled) * EAGER_S
    rung_s = baseline.start_s + timing_s + len(layers) * LAYER_S[device]
    kinds = len({target.path for target in blocks})
    denoisers = len(choices.quantizations) * len(choices.backends)
    trial_s = baseline.start_s + baseline.load_s + kinds * BLOCK_S[device]
    trial_s += STEPS_A_TRIAL * baseline.step_ms / 1000
    return RungCost(rung_s, SPARED_SHARE * min(denoisers, MOST_TRIALS) * trial_s)


@dataclass(frozen=True)
class Timed:
    """What a study knows of blocks: their sums, and the quantizations that make them faster, the
    fastest first, whose layers were timed singly."""

    sums: BlockSums
    faster: tuple[Quantization, ...]


class BlockRung:
    """Of one study. `reserved_s` is what it must leave of the time."""

    def __init__(
        self,
        inventory: ModelInventory,
        environment: Environment,
        workload: Workload,
        timer: Timer,
        store: TimingStore,
        note: Callable[[str], None],
        *,
        reserved_s: float = 0.0,
    ) -> None:
        self._inventory, self._environment, self._workload = inventory, environment, workload
        self._timer, self._store, self._note = timer, store, note
        self._reserved_s = reserved_s
        self._known: dict[TimingKey, Timing] = {}

    def run(self, baseline: Trial, plans: Sequence[Plan], time_limit: TimeLimit) -> Timed | None:
        """None where nothing is known of blocks and timing them does not pay."""
        shape = typical_shape(self._workload)
        kinds = kinds_at(self._inventory, shape)
        denoiser = self._inventory.denoiser.name
        choices = choices_among(plans, denoiser)
        if not kinds or not choices.quantizations:
            return None
        bench = Bench(self._environment, baseline.plan.pipeline.dtype)
        blocks = block_targets(kinds, bench, shape, choices)
        quantized = [item for item in choices.quantizations if item.scheme != "none"]
        layers = layer_targets(kinds, bench, shape, quantized[:PROMISING])
        missing = self._missing(blocks)
        device = self._environment.hardware.device
        cost = rung_cost(missing, self._missing(layers), choices, measured(baseline), device)
        cost = replace(cost, reserved_s=self._reserved_s)
        affordable = cost.pays(time_limit.remaining_s)
        allowance = _Allowance(time_limit, cost)
        if missing and affordable:
            self._time(missing, allowance)
        sums = BlockSums(kinds, bench, shape, self._known, quantizations=choices.quantizations)
        if sums.blocks_ms() is None:
            return None
        fastest = fastest_quantizations(sums, quantized)
        wanted = self._missing(layer_targets(kinds, bench, shape, fastest))
        if wanted and affordable and not allowance.is_spent:
            self._time(wanted, allowance)
        rest_ms = measured_rest_ms(sums, baseline.plan, measured(baseline), denoiser)
        return Timed(replace(sums, timings=dict(self._known), rest_ms=rest_ms), fastest)

    def _missing(self, targets: Sequence[TimingTarget]) -> tuple[TimingTarget, ...]:
        """Those that are not settled; the others are known from here on."""
        self._known |= self._store.known([item.key for item in targets])
        return tuple(item for item in targets if not self._is_settled(item.key))

    def _is_settled(self, key: TimingKey) -> bool:
        found = self._known.get(key)
        return found is not None and found.outcome in SETTLED

    def _time(self, targets: Sequence[TimingTarget], allowance: _Allowance) -> None:
        found, failure = self._timer(targets, allowance.left_s)
        self._known |= {timing.key: timing for timing in found}
        self._store.keep(found)
        if failure is not None:
            self._note(f"timing of blocks ended early: {failure.kind}: {failure.message}")


class _Allowance:
    """What the rung may take of a run's time, all its jobs together."""

    def __init__(self, time_limit: TimeLimit, cost: RungCost) -> None:
        self._time_limit = time_limit
        remaining_s = time_limit.remaining_s
        self._kept_s = 0.0 if remaining_s is None else remaining_s - cost.most_s(remaining_s)

    @property
    def left_s(self) -> float | None:
        """None without a limit."""
        remaining_s = self._time_limit.remaining_s
        return None if remaining_s is None else max(0.0, remaining_s - self._kept_s)

    @property
    def is_spent(self) -> bool:
        return self.left_s == 0.0


def fastest_quantizations(
    sums: BlockSums, quantizations: Sequence[Quantization]
) -> tuple[Quantization, ...]:
    """The few under which all blocks together are faster than unquantized ones."""
    plain_ms = sums.blocks_ms()
    timed = [(item, sums.blocks_ms(item)) for item in quantizations]
    better = [(ms, at) for at, (_, ms) in enumerate(timed) if ms and plain_ms and ms < plain_ms]
    return tuple(timed[at][0] for _, at in sorted(better)[:PROMISING])
