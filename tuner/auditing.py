"""Runs the audit of a study: its sample of dropped candidates, after the answer is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from registry.record import Rung, Trial, TuningRecord
from registry.store import Registry
from registry.studies import StudyRow
from tuner.audit import (
    AuditReport,
    Bar,
    FalseDrop,
    StratumCount,
    Suspect,
    Verdict,
    bar_of,
    false_tries,
    sample,
)
from tuner.clock import TimeLimit
from tuner.desk import Finished, TrialDesk
from tuner.journal import Journal
from tuner.planning import Planning
from tuner.search import Search
from tuner.suspects import suspects

STAGE = "audit"


@dataclass(frozen=True)
class _Tried:
    """A suspect with its last trial. `ran` where that measured something."""

    suspect: Suspect
    last: Trial
    verdict: Verdict

    @property
    def ran(self) -> bool:
        return self.last.measurement is not None


class Audit:
    """Of one study that has published. `pool` is all that was dropped; `trials` are those of the
    study's search and `reference` the digest of its baseline; `seed` decides the sample."""

    def __init__(
        self,
        desk: TrialDesk,
        journal: Journal,
        pool: Iterable[Suspect],
        bar: Bar,
        trials: Sequence[Trial],
        reference: str,
        seed: str,
    ) -> None:
        self._desk, self._journal, self._bar = desk, journal, bar
        self._trials, self._reference = trials, reference
        tried = {trial.plan.digest for trial in trials}
        self._pool = [item for item in pool if item.plan.digest not in tried]
        self._sample = sample(self._pool, desk.request.audit, seed)
        self._done: list[_Tried] = []
        self._before = {(t.rung, t.plan.digest): t for t in journal.audited}

    def run(self, time_limit: TimeLimit) -> None:
        """Every suspect of the sample until the time is over; what ran before is not run again."""
        self._journal.stage(STAGE)
        for suspect in self._sample:
            last = self._trial("denoiser", suspect, time_limit)
            verdict: Verdict = "right"
            if last is not None and self._bar.is_promising(last, suspect.estimate):
                last = self._trial("pipeline", suspect, time_limit)
                verdict = "right" if last is None else self._bar.of_whole(last)
            if last is None:
                return
            self._done.append(_Tried(suspect, last, verdict))

    def report(self) -> AuditReport:
        """What is known by now."""
        budget_bytes = self._desk.request.budget_bytes
        return AuditReport(
            asked=self._desk.request.audit,
            complete=len(self._done) == len(self._sample),
            strata=dict(self._strata()),
            false_drops=tuple(self._false_drops()),
            false_tries=false_tries(self._trials, self._reference, budget_bytes, self._bar),
        )

    def _trial(self, rung: Rung, suspect: Suspect, time_limit: TimeLimit) -> Trial | None:
        """None where no time is left for it."""
        known = self._before.get((rung, suspect.plan.digest))
        if known is not None or time_limit.is_over:
            return known
        run = partial(self._run, rung, suspect, time_limit.remaining_s)
        return self._journal.trial(rung, suspect.plan, run)

    def _run(self, rung: Rung, suspect: Suspect, limit_s: float | None) -> Finished:
        """The search never looks at a trial that was dropped, so that it goes its own way."""
        finished = self._desk.measure(rung, suspect.plan, suspect.estimate, limit_s)
        marked = finished.trial.model_copy(update={"dropped": suspect.told})
        return replace(finished, trial=marked)

    def _strata(self) -> Iterator[tuple[str, StratumCount]]:
        for name, dropped in Counter(item.stratum for item in self._pool).items():
            own = [item for item in self._done if item.suspect.stratum == name]
            verdicts = Counter(item.verdict for item in own)
            yield (
                name,
                StratumCount(
                    dropped=dropped,
                    tried=len(own),
                    fitted=sum(item.ran for item in own),
                    faster=verdicts["faster"],
                    smaller=verdicts["smaller"],
                ),
            )

    def _false_drops(self) -> Iterator[FalseDrop]:
        for item in self._done:
            measured, suspect = item.last.measurement, item.suspect
            if item.verdict == "right" or measured is None:
                continue
            score = self._bar.judge.measured(measured)
            yield FalseDrop(
                plan=suspect.plan.digest,
                label=self._journal.label(suspect.plan),
                verdict=item.verdict,
                stratum=suspect.stratum,
                reason=suspect.reason,
                score_s=score.value_s if score else 0.0,
                peak_vram_bytes=measured.memory.peak_vram_bytes,
            )


def answers_of(registry: Registry, study: StudyRow) -> dict[str, TuningRecord]:
    """What a study has published before, by plan."""
    return {item.record.plan.digest: item.record for item in registry.history(study=study.id)}


def audit_of(
    desk: TrialDesk,
    journal: Journal,
    planning: Planning,
    search: Search,
    baseline: Trial,
    best: TuningRecord,
) -> Audit:
    """The audit of a study that has just published, or did before it was stopped."""
    trials, reference = journal.own_trials(), baseline.plan.digest
    bar = bar_of(planning.judge, best, trials, reference)
    pool = suspects(planning, search, baseline)
    return Audit(desk, journal, pool, bar, trials, reference, seed=best.study)
