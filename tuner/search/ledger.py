"""What a study has finished so far: trials by rung and plan."""

from __future__ import annotations

from collections.abc import Iterator

from registry.record import FailureKind, Measurement, Rung, Trial

LADDER: tuple[Rung, ...] = ("bytes", "blocks", "denoiser", "pipeline", "replay")
"""From cheap to dear. `bytes` needs no device: the survey of the space is that rung. `blocks` times
one repeated block of each kind, once for all plans (`tuner.block_rung`): it has no trials, and what
it found is in the estimates that a search begins with."""

STEP_RUNGS: tuple[Rung, ...] = ("denoiser", "pipeline", "replay")
"""Rungs that time whole denoiser steps, from cheap to dear."""

LASTING: frozenset[FailureKind] = frozenset({"unsupported", "error", "out_of_memory"})
"""Failures that say something about the plan's choices. A crash or a time-out may be chance."""


class Ledger:
    """Finished trials. A trial told twice counts once; the order of telling does not matter."""

    def __init__(self) -> None:
        self._trials: dict[tuple[Rung, str], Trial] = {}

    def add(self, trial: Trial) -> None:
        """The first trial of a rung and plan stands, unless the other one measured something."""
        key = (trial.rung, trial.plan.digest)
        known = self._trials.get(key)
        if trial.dropped is None and (known is None or _order(trial) < _order(known)):
            self._trials[key] = trial

    def get(self, rung: Rung, plan_digest: str) -> Trial | None:
        return self._trials.get((rung, plan_digest))

    def measurement(self, rung: Rung, plan_digest: str) -> Measurement | None:
        trial = self.get(rung, plan_digest)
        return None if trial is None else trial.measurement

    def tried(self, plan_digest: str) -> bool:
        """Whether a trial of this plan ended at any rung, well or not."""
        return any((rung, plan_digest) in self._trials for rung in LADDER)

    def at(self, rung: Rung) -> Iterator[Trial]:
        """Trials of one rung, by plan digest."""
        for (own, _), trial in sorted(self._trials.items()):
            if own == rung:
                yield trial

    def failed(self) -> Iterator[Trial]:
        """Every trial that did not."""
        for rung in LADDER:
            yield from (trial for trial in self.at(rung) if trial.failure is not None)


def _order(trial: Trial) -> tuple[bool, str]:
    return trial.measurement is None, trial.started_at.isoformat()
