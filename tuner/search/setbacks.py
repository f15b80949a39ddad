"""What failures and rejected pictures imply for plans that did not run yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property

from registry.record import Rung, Trial
from tuner.gate import failed_metrics
from tuner.policies import REQUIRED
from tuner.search.entry import Entry
from tuner.search.ledger import LADDER, LASTING, Ledger

SUSPECT_CHANCE = 0.5
MEMORY_CHANCE = 0.25
OVER_BUDGET_CHANCE = 0.5
FAILURES_TO_GIVE_UP = 2
AS_LARGE = 0.99
WHOLE_RUNGS: tuple[Rung, ...] = ("pipeline", "replay")
"""A choice that never worked halves a plan's chance for each failure it was part of; one that
alone explains two lasting failures is given up. Where a plan ran out of memory, one predicted as
large in the same places (within AS_LARGE) has a quarter of its chance left, and none where whole
requests were run; one predicted a little over the budget starts with half."""


class Setbacks:
    """A view of the ledger's failures. `worked` are the choices of plans that ran to their end."""

    def __init__(
        self, ledger: Ledger, entries: Mapping[str, Entry], worked: frozenset[str]
    ) -> None:
        self._ledger = ledger
        self._entries = entries
        self._worked = worked

    def own(self, entry: Entry) -> str | None:
        """Why this very plan is out by its own trials, None if it is not."""
        for rung in LADDER:
            trial = self._ledger.get(rung, entry.digest)
            if trial is not None and is_rejected(trial):
                return f"{rung}: picture rejected"
            if trial is not None and trial.failure is not None:
                return f"{rung}: {trial.failure.kind}: {trial.failure.message}"
        return None

    def implied(self, entry: Entry) -> str | None:
        """Why this plan is out by what others showed, None if it is not."""
        if {entry.picture, entry.denoiser_picture} & self._refused_pictures:
            return "the picture of a plan with the same quantization was rejected"
        if entry.rounding in self._refused_roundings:
            return "so compiled, and with this attention, even the unquantized picture was rejected"
        if any(as_large(entry, o) and same_vae(entry, o) for o in self._whole_out_of_memory):
            return "predicted as large as a plan that ran out of memory in the same places"
        broken = sorted(entry.tried_together & self._given_up)
        return f"{broken[0]} failed in every trial that had it" if broken else None

    def chance(self, entry: Entry) -> float:
        """Of running to the end, from 0 to 1, by the failures of plans like it."""
        suspected = sum(len(suspects & entry.tried_together) for suspects in self._suspects)
        crowded = sum(as_large(entry, failed) for failed in self.out_of_memory)
        tight = OVER_BUDGET_CHANCE if entry.over_budget else 1.0
        return tight * SUSPECT_CHANCE**suspected * MEMORY_CHANCE**crowded

    @cached_property
    def out_of_memory(self) -> tuple[Entry, ...]:
        failed = [trial for trial in self._failed if self._is_too_large(trial)]
        return tuple(self._entries[trial.plan.digest] for trial in failed)

    @cached_property
    def _whole_out_of_memory(self) -> tuple[Entry, ...]:
        """Those that failed on whole requests: memory of a step says little of a picture's."""
        trials = [t for t in self._failed if self._is_too_large(t) and t.rung in WHOLE_RUNGS]
        return tuple(self._entries[trial.plan.digest] for trial in trials)

    def _is_too_large(self, trial: Trial) -> bool:
        """What a step cache keeps is in no prediction, and says nothing of plans without one."""
        caches = self._entries[trial.plan.digest].caches_steps
        return kind(trial) == "out_of_memory" and not caches

    @cached_property
    def _failed(self) -> tuple[Trial, ...]:
        return tuple(t for t in self._ledger.failed() if t.plan.digest in self._entries)

    @cached_property
    def _blamed(self) -> tuple[tuple[Trial, frozenset[str]], ...]:
        """Failures other than of memory, picture or times, with the choices that worked nowhere
        else."""
        beside = ("out_of_memory", "rejected_quality", "timing")
        failed = [trial for trial in self._failed if kind(trial) not in beside]
        return tuple(
            (t, self._entries[t.plan.digest].tried_together - self._worked) for t in failed
        )

    @cached_property
    def _suspects(self) -> tuple[frozenset[str], ...]:
        return tuple(suspects for _, suspects in self._blamed)

    @cached_property
    def _given_up(self) -> frozenset[str]:
        """Choices that alone explain two lasting failures."""
        alone = [s for trial, s in self._blamed if len(s) == 1 and kind(trial) in LASTING]
        counts = Counter(choice for suspects in alone for choice in suspects)
        return frozenset(name for name, count in counts.items() if count >= FAILURES_TO_GIVE_UP)

    @cached_property
    def _rejected(self) -> tuple[tuple[Trial, Entry], ...]:
        found = (t for rung in LADDER for t in self._ledger.at(rung) if is_rejected(t))
        known = ((trial, self._entries.get(trial.plan.digest)) for trial in found)
        return tuple((trial, entry) for trial, entry in known if entry is not None)

    @cached_property
    def _refused_roundings(self) -> frozenset[str]:
        """Of plans that quantize nothing: their compilation or attention alone is to blame."""
        return frozenset(
            entry.rounding
            for trial, entry in self._rejected
            if entry.picture is None and _denoiser_failed(trial)
        )

    @cached_property
    def _refused_pictures(self) -> frozenset[str]:
        """A scheme is not to blame where kernels around it are."""
        return frozenset(
            name
            for trial, entry in self._rejected
            if entry.rounding not in self._refused_roundings
            for name in self._pictures(trial, entry)
        )

    def _pictures(self, trial: Trial, entry: Entry) -> Iterator[str]:
        if entry.picture is not None:
            yield entry.picture
        if _denoiser_failed(trial) and entry.denoiser_picture is not None:
            yield entry.denoiser_picture


def _denoiser_failed(trial: Trial) -> bool:
    return trial.quality is not None and REQUIRED in failed_metrics(trial.quality)


def as_large(entry: Entry, failed: Entry) -> bool:
    """In the same places, and predicted to need no less device memory, give or take a little."""
    same_places = entry.placements == failed.placements
    least_bytes = AS_LARGE * failed.estimate.peak_vram_bytes
    return same_places and entry.estimate.peak_vram_bytes >= least_bytes


def same_vae(entry: Entry, other: Entry) -> bool:
    return entry.plan.pipeline.vae == other.plan.pipeline.vae


def kind(trial: Trial) -> str | None:
    return None if trial.failure is None else trial.failure.kind


def is_rejected(trial: Trial) -> bool:
    """Whether it ran, and its picture was refused."""
    if trial.quality is not None:
        return not trial.quality.passed
    return kind(trial) == "rejected_quality"
