"""What the finished trials say about every candidate: measured, open, excluded, promising."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, reduce

from registry.record import Measurement, Rung, Trial
from tuner.gate import compare_replay
from tuner.objective import Judge, Score, start_up_s
from tuner.search.duel import Timing, Verdict, challenge
from tuner.search.entry import Entry
from tuner.search.ledger import STEP_RUNGS, Ledger
from tuner.search.parts import WHOLE, Errors, Parts
from tuner.search.setbacks import as_large
from tuner.search.surrogate import Prediction, Sample, expected_gain

CONFIDENCE_SD = 2.0
"""A plan can win if its prediction, better by this many standard deviations, would."""

Vector = tuple[float, float, float, float]
"""Peak VRAM bytes, host bytes, score in seconds, start-up seconds."""


class Prospects:
    """A view of the ledger at one moment: everything follows from the set of finished trials.

    `reference` is the digest of the plan that pictures are compared with: it needs no verdict.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        ledger: Ledger,
        judge: Judge,
        *,
        reference: str | None,
        budget_bytes: int | None,
        parts: Parts = WHOLE,
    ) -> None:
        self.entries = entries
        self._ledger = ledger
        self._judge = judge
        self.reference = reference
        self._budget_bytes, self._parts = budget_bytes, parts
        self._by_digest = {entry.digest: entry for entry in entries}
        plain = [entry.denoiser_choices for entry in entries if not entry.caches_steps]
        self._common = frozenset.intersection(*plain)
        self._predictions: dict[str, Prediction] = {}
        self.setbacks = parts.setbacks(ledger, self._by_digest, self._worked())

    def projected(self, entry: Entry) -> Score | None:
        """Score of whole requests by steps measured on this plan or one with the same denoiser;
        None for one that caches steps, whose requests are no sum of them."""
        measured = self._measured_steps(entry)
        if measured is None or entry.caches_steps:
            return None
        return self._judge.projected(measured, entry.estimate)

    def latency_s(self, entry: Entry) -> float:
        """Seconds of a warm request, whatever the objective: by measured steps if there are any."""
        measured = self._measured_steps(entry)
        if measured is None:
            return entry.estimate.latency_s * math.exp(self._predict(entry).mean)
        return replace(self._judge, objective="latency").projected(measured, entry.estimate).value_s

    def passed(self, entry: Entry) -> Score | None:
        """Score at the pipeline rung, if it got through and its picture was accepted."""
        trial = self._ledger.get("pipeline", entry.digest)
        if trial is None or trial.measurement is None or self.own_failure(entry) is not None:
            return None
        if trial.quality is None and entry.digest != self.reference:
            return None
        return self._judge.measured(trial.measurement)

    def would_win(self, trial: Trial) -> bool:
        """Whether a plan whose picture was refused was faster than the best that passed; also where
        it was not timed."""
        score = self._judge.measured(trial.measurement) if trial.measurement else None
        best = None if self.winner is None else self.passed(self.winner)
        return score is None or best is None or score.beats(best)

    def own_failure(self, entry: Entry) -> str | None:
        """Why this plan is out by its own trials, None if it is not."""
        return self.setbacks.own(entry) or self._over_budget(entry) or self._unrepeated(entry)

    def why_out(self, entry: Entry) -> str | None:
        """Why this plan is out, by its own trials or by what others' imply; None if it is not."""
        own = self.own_failure(entry)
        if own is not None or entry.digest == self.reference:
            return own
        return self.setbacks.implied(entry)

    def vector(self, entry: Entry) -> Vector | None:
        """What finalists are compared by; memory is the estimate's until this plan itself ran."""
        own, steps = self._own_measurement(entry), self._measured_steps(entry)
        score = self.passed(entry) or self.projected(entry)
        if steps is None or score is None:
            return None
        peak = own.memory.peak_vram_bytes if own else entry.estimate.peak_vram_bytes
        host = own.memory.host_peak_bytes if own else entry.estimate.host_bytes
        return (float(peak), float(host), score.value_s, start_up_s(own or steps))

    def predicted_s(self, entry: Entry) -> float:
        """The estimate, corrected by how wrong estimates of plans like it have been."""
        return entry.estimated_s * math.exp(self._predict(entry).mean)

    def bound_s(self, entry: Entry) -> float:
        """The best this plan can be expected to reach, given how wrong estimates have been."""
        prediction = self._predict(entry)
        return entry.estimated_s * math.exp(prediction.mean - CONFIDENCE_SD * prediction.sd)

    def gain(self, entry: Entry, target_s: float) -> float:
        """Expected improvement on `target_s`, as a share of it, by its chance to run at all."""
        gap = math.log(target_s / entry.estimated_s)
        return expected_gain(self._predict(entry), gap) * self.setbacks.chance(entry)

    def _predict(self, entry: Entry) -> Prediction:
        """Of log(measured / estimated)."""
        if entry.denoiser not in self._predictions:
            choices = entry.denoiser_choices - self._common
            self._predictions[entry.denoiser] = self._errors.predict(choices)
        return self._predictions[entry.denoiser]

    @cached_property
    def incumbent_s(self) -> float:
        """Seconds to beat: the leader's, or while nothing was measured the worst prediction."""
        score = None if self.leader is None else self.projected(self.leader)
        return score.value_s if score else max(entry.estimated_s for entry in self.entries)

    @cached_property
    def leader(self) -> Entry | None:
        """Best projected plan that is not excluded; of those within the noise, the simplest."""
        scored = ((entry, self.projected(entry)) for entry in self.entries)
        return simplest_best([(e, s) for e, s in scored if s and self.why_out(e) is None])

    @cached_property
    def winner(self) -> Entry | None:
        """Best plan that passed the pipeline rung; of those within the noise, the simplest."""
        scored = ((entry, self.passed(entry)) for entry in self.entries)
        return simplest_best([(entry, score) for entry, score in scored if score])

    @cached_property
    def plain_winner(self) -> Entry | None:
        """The same among plans that compute every step."""
        plain = ((entry, self.passed(entry)) for entry in self.entries if not entry.caches_steps)
        return simplest_best([(entry, score) for entry, score in plain if score])

    @cached_property
    def champion(self) -> Entry | None:
        """Of the plans that were replayed the best: the one timed first, or who beat it. Until
        there is one, the winner."""
        replayed = [entry for entry in self.entries if self.replayed(entry)]
        return reduce(self._better, sorted(replayed, key=self._first_timed_at), None) or self.winner

    def replayed(self, entry: Entry) -> bool:
        """Whether it passed the gate and its replay repeated it."""
        again = self._ledger.measurement("replay", entry.digest)
        return again is not None and self.passed(entry) is not None

    def verdict(self, incumbent: Entry, challenger: Entry) -> Verdict:
        """Of two plans that passed the gate, by all that timed whole requests of them."""
        return challenge(self._timings(incumbent), self._timings(challenger))

    def in_doubt(self, entry: Entry, rival: Entry) -> bool:
        """Whether their trials leave open which of the two is the better; the earlier one of them
        is the incumbent."""
        first, second = sorted((entry, rival), key=self._first_timed_at)
        return self.verdict(first, second) == "open"

    def _better(self, champion: Entry | None, challenger: Entry) -> Entry:
        if champion is None or self.verdict(champion, challenger) == "won":
            return challenger
        return champion

    def _first_timed_at(self, entry: Entry) -> tuple[datetime, tuple[bool, int, int, str]]:
        return (min(item.at for item in self._timings(entry)), entry.order)

    def _timings(self, entry: Entry) -> tuple[Timing, ...]:
        """Of whole requests. A first image counts at the pipeline rung alone: a replay finds other
        caches."""
        rungs: tuple[Rung, ...] = ("pipeline", "replay")
        if self._judge.objective == "first-image":
            rungs = rungs[:1]
        trials = (self._ledger.get(rung, entry.digest) for rung in rungs)
        measured = [(trial, trial.measurement) for trial in trials if trial and trial.measurement]
        scored = [(trial, self._judge.measured(found)) for trial, found in measured]
        return tuple(Timing(trial.started_at, score) for trial, score in scored if score)

    @cached_property
    def unmeasured(self) -> tuple[Entry, ...]:
        """One entry per distinct denoiser that was not timed and is not excluded, best first; none
        that caches steps."""
        chosen: dict[str, Entry] = {}
        for entry in self.entries:
            known = entry.denoiser in chosen or entry.denoiser in self._steps_by_denoiser
            known = known or entry.caches_steps
            if not known and self.why_out(entry) is None and not self._known_too_large(entry):
                chosen[entry.denoiser] = entry
        return tuple(chosen.values())

    def runs_alike(self, trial: Trial, entry: Entry) -> bool:
        """Whether the trial's denoiser is this plan's."""
        tried = self._by_digest.get(trial.plan.digest)
        return tried is not None and tried.denoiser == entry.denoiser

    def first_timed(self, entry: Entry) -> Measurement | None:
        """The measurement that timed this plan's denoiser first, whichever plan it was."""
        return self._steps_by_denoiser.get(entry.denoiser)

    @cached_property
    def timed_denoisers(self) -> int:
        """How many distinct denoisers have measured steps, the reference's apart."""
        reference = self._by_digest.get(self.reference or "")
        return len(set(self._steps_by_denoiser) - {reference.denoiser if reference else ""})

    @cached_property
    def _steps_by_denoiser(self) -> dict[str, Measurement]:
        """One measurement for all plans of one denoiser: that of the cheapest rung stands, so that
        plans are compared by like with like."""
        found: dict[str, Measurement] = {}
        for rung in STEP_RUNGS:
            for entry in self.entries:
                measured = self._ledger.measurement(rung, entry.digest)
                if measured is not None:
                    found.setdefault(entry.denoiser, measured)
        return found

    @cached_property
    def _errors(self) -> Errors:
        return self._parts.errors(list(self._samples()))

    def _samples(self) -> Iterator[Sample]:
        for entry in self.entries:
            if self._ran(entry):
                score = self.projected(entry)
                if score is not None:
                    choices = entry.denoiser_choices - self._common
                    yield choices, math.log(score.value_s / entry.estimated_s)

    def _worked(self) -> frozenset[str]:
        ran = (entry.tried_together for entry in self.entries if self._ran(entry))
        return frozenset[str]().union(*ran)

    def _ran(self, entry: Entry) -> bool:
        return any(self._ledger.measurement(rung, entry.digest) for rung in STEP_RUNGS)

    def _measured_steps(self, entry: Entry) -> Measurement | None:
        own = self._ledger.measurement("denoiser", entry.digest)
        return own or self._steps_by_denoiser.get(entry.denoiser)

    def _own_measurement(self, entry: Entry) -> Measurement | None:
        whole = self._ledger.measurement("pipeline", entry.digest)
        return whole or self._ledger.measurement("denoiser", entry.digest)

    def _over_budget(self, entry: Entry) -> str | None:
        measured = self._own_measurement(entry)
        if measured is None or self._budget_bytes is None:
            return None
        peak = measured.memory.peak_vram_bytes
        return (
            f"measured peak {peak} bytes is over the budget" if peak > self._budget_bytes else None
        )

    def _unrepeated(self, entry: Entry) -> str | None:
        proved = self._ledger.measurement("pipeline", entry.digest)
        again = self._ledger.measurement("replay", entry.digest)
        if proved is None or again is None:
            return None
        problems = compare_replay(proved, again).problems
        return f"replay: {'; '.join(problems)}" if problems else None

    def _known_too_large(self, entry: Entry) -> bool:
        same = [e for e in self.setbacks.out_of_memory if e.denoiser == entry.denoiser]
        return any(as_large(entry, failed) for failed in same)


def simplest_best(scored: Sequence[tuple[Entry, Score]]) -> Entry | None:
    """The simplest of those that the fastest does not beat by more than the noise."""
    if not scored:
        return None
    _, best = min(scored, key=lambda item: (item[1].value_s, item[0].order))
    level = [(entry, score) for entry, score in scored if not best.beats(score)]
    entry, _ = min(level, key=lambda item: (item[0].complexity, item[1].value_s, item[0].digest))
    return entry
