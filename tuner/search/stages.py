"""The stages of a search: each looks at the finished trials and proposes one, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from registry.record import Rung
from tuner.search.caching import Caching
from tuner.search.durations import Durations
from tuner.search.entry import Entry
from tuner.search.features import trial_cost
from tuner.search.finalists import covered, ranked, uncovered
from tuner.search.ledger import Ledger
from tuner.search.proposal import Known, Proposal
from tuner.search.prospects import Prospects

PROBES = 3
"""Distinct denoisers timed before the first plan goes through the pipeline rung."""

MIN_GAIN = 0.003
"""Exploring ends when no candidate is expected to better the incumbent by this share."""

SMALL_GAIN = 0.02
"""For less than this, exploring leaves time to prove a second finalist too."""

KNOWN_GAIN = 0.1
"""Where the best plan of an earlier search leads again and is as fast as it was, exploring ends for
less than this: that search held all candidates against each other."""

AS_FAST = 1.05
"""How much slower than in the earlier search counts as no slower."""

NEARLY = 0.75
"""Of the greatest expected gain: estimates this near each other do not tell two plans apart, and a
plan that shares a choice with one that failed, which halves its chance, is not as promising."""

MAX_FINALISTS = 4
MAX_RIVALS = 2
"""Plans replayed beside the champion, before those too near it to tell apart are left so."""

LEANER = 0.75
LEAST_CHANCE = 0.5
"""A plan never timed is worth proving for its memory if it needs under this share of the least, and
plans like it did not fail more than once."""

TIME_MARGIN = 1.15
"""How much longer than expected a trial is allowed for when time is reserved."""

LAST_SHARE = 0.6
"""Of the time expected: with this much left and nothing better proved, a proof is tried anyway. It
is stopped at the limit, and the time had no other use."""

PROOF: tuple[Rung, ...] = ("pipeline", "replay")
"""What a plan must still go through to be published."""


class Stages:
    """One moment's stages. `remaining_s` is None without a time limit. `first` are the plans
    that an earlier search found best, in its order; `caching` are step caches to try;
    `by_time` weighs what a trial promises by how long it takes."""

    def __init__(
        self,
        view: Prospects,
        ledger: Ledger,
        first: Sequence[Known] = (),
        caching: Caching | None = None,
        *,
        by_time: bool = True,
    ) -> None:
        self._view = view
        self._ledger = ledger
        self._by_time = by_time
        self._caching = caching or Caching()
        self._durations = Durations(view, ledger)
        by_digest = {entry.digest: entry for entry in view.entries}
        self._step_ms = {known.plan.digest: known.step_ms for known in first}
        self._first = [by_digest[digest] for digest in self._step_ms if digest in by_digest]

    def measure_first(self, remaining_s: float | None) -> Proposal | None:
        """The best of an earlier search: the first that runs goes through the pipeline at once, the
        others only as far as it takes to see whether they overtake it."""
        able = [entry for entry in self._first if self._view.why_out(entry) is None]
        for entry in able:
            rungs: tuple[Rung, ...] = PROOF if entry is able[0] else ("denoiser", *PROOF)
            idle = not self._ledger.tried(entry.digest) and entry.digest != self._view.reference
            if idle and self._fits(remaining_s, entry, *rungs):
                reason = "among the best of an earlier search"
                return self._proposal(rungs[0], entry, reason, remaining_s, rungs[1:])
        return None

    def probe(self, remaining_s: float | None) -> Proposal | None:
        if self._view.timed_denoisers >= PROBES:
            return None
        return self.explore(remaining_s)

    def prove_first(self, remaining_s: float | None) -> Proposal | None:
        passed = [entry for entry in self._view.entries if self._view.passed(entry)]
        if any(entry.digest != self._view.reference for entry in passed):
            return None
        return self.prove(remaining_s)

    def explore(self, remaining_s: float | None) -> Proposal | None:
        """The denoiser trial that promises most for each second it takes, while one can win."""
        view = self._view
        able = [e for e in view.unmeasured if self._fits(remaining_s, e, "denoiser", *PROOF)]
        if not able:
            return None
        target_s = min([view.incumbent_s, *(view.predicted_s(entry) for entry in able)])
        chosen = max(able, key=lambda entry: self._worth(entry, target_s))
        if view.timed_denoisers == 0:
            chosen = self._plain_and_promising(able)
        if not self._worth_exploring(able, chosen, remaining_s):
            return None
        reason = f"predicted {view.predicted_s(chosen):.3g} s, to beat {view.incumbent_s:.3g} s"
        return self._proposal("denoiser", chosen, reason, remaining_s, PROOF)

    def prove(self, remaining_s: float | None) -> Proposal | None:
        """The leader through the pipeline; without time to measure any, the most promising."""
        leader = self._view.leader
        if leader is None or leader.digest == self._view.reference:
            leader = self._most_promising()
        if leader is None or self._ledger.get("pipeline", leader.digest) is not None:
            return None
        if not self._fits(remaining_s, leader, *PROOF):
            return None
        return self._proposal("pipeline", leader, "the best so far", remaining_s, PROOF[1:])

    def replay_winner(self, remaining_s: float | None) -> Proposal | None:
        """Of the plans that compute every step: its proof stands before it is tried with less."""
        winner = self._view.plain_winner
        return None if winner is None else self._replay(winner, remaining_s, "the winner")

    def cache_steps(self, remaining_s: float | None) -> Proposal | None:
        """The winner with a step cache, through whole requests: its single steps say nothing."""
        entry = self._caching.next(self._view, self._ledger)
        if entry is None or not self._fits(remaining_s, entry, *PROOF):
            return None
        reason = "the winner with a step cache"
        return self._proposal("pipeline", entry, reason, remaining_s, PROOF[1:])

    def replay_cached(self, remaining_s: float | None) -> Proposal | None:
        winner = self._view.winner
        if winner is None or not winner.caches_steps:
            return None
        return self._replay(winner, remaining_s, "the winner with a step cache")

    def replay_others(self, remaining_s: float | None) -> Proposal | None:
        passed = [entry for entry in self._view.entries if self._view.passed(entry)]
        for entry in uncovered(self._view, passed):
            if entry.digest != self._view.reference:
                proposal = self._replay(entry, remaining_s, "no other dominates it")
                if proposal is not None:
                    return proposal
        return None

    def settle(self, remaining_s: float | None) -> Proposal | None:
        """A plan so near the champion that a drift of the machine between their trials may have
        decided: its replay comes after the champion's, as its proof came before or after."""
        champion = self._view.champion
        if champion is None or not self._view.replayed(champion):
            return None
        rivals = [e for e in self._view.entries if self._is_rival(e, champion)]
        replayed = [entry for entry in rivals if self._view.replayed(entry)]
        if len(replayed) >= MAX_RIVALS:
            return None
        for entry, _ in ranked(self._view, rivals):
            if self._view.in_doubt(champion, entry):
                proposal = self._replay(entry, remaining_s, "as near the best as machines drift")
                if proposal is not None:
                    return proposal
        return None

    def _is_rival(self, entry: Entry, champion: Entry) -> bool:
        """Of plans that differ in their step caches alone one is enough."""
        apart = entry is not champion and entry.digest != self._view.reference
        both_cache = entry.caches_steps and champion.caches_steps
        return apart and not both_cache and self._view.passed(entry) is not None

    def last_chance(self, remaining_s: float | None) -> Proposal | None:
        """Nothing beat the reference for certain yet, and no proof surely fits: the best plan
        is tried all the same rather than the time given back."""
        if remaining_s is None or self._beaten():
            return None
        winner, leader = self._view.winner, self._view.leader
        for entry, rungs in ((winner, PROOF[1:]), (leader, PROOF)):
            if entry is None or (entry.digest == self._view.reference and rungs == PROOF):
                continue
            done = self._ledger.get(rungs[0], entry.digest) is not None
            if not done and remaining_s >= LAST_SHARE * self._cost_s(entry, rungs):
                limit_s = remaining_s if rungs == PROOF[1:] else LAST_SHARE * remaining_s
                reason = "what the time left may still prove"
                return Proposal(rungs[0], entry.plan, entry.estimate, reason, limit_s)
        return None

    def _beaten(self) -> bool:
        """Whether a replay repeated any plan but the reference."""
        return any(
            trial.measurement is not None and trial.plan.digest != self._view.reference
            for trial in self._ledger.at("replay")
        )

    def widen(self, remaining_s: float | None) -> Proposal | None:
        """A plan that gives something the finalists do not: less memory, a faster start."""
        view = self._view
        plain = [entry for entry in view.entries if not entry.caches_steps]
        passed = ranked(view, [entry for entry in plain if view.passed(entry)])
        if not passed or len(passed) >= MAX_FINALISTS:
            return None
        timed = ranked(view, [entry for entry in plain if self._ready(entry)])
        apart = [e for e, v in timed if not any(covered(v, other) for _, other in passed)]
        least_bytes = min(vector[0] for _, vector in passed)
        lean = sorted(self._lean(least_bytes), key=view.predicted_s)
        entry = next((e for e in (*apart, *lean) if self._fits(remaining_s, e, *PROOF)), None)
        if entry is None:
            return None
        reason = "less memory or a faster start than the finalists"
        return self._proposal("pipeline", entry, reason, remaining_s, PROOF[1:])

    def _lean(self, least_bytes: float) -> list[Entry]:
        """Plans never timed that are predicted to need much less memory than any finalist."""
        return [
            entry
            for entry in self._view.unmeasured
            if entry.estimate.peak_vram_bytes < LEANER * least_bytes
            and self._view.setbacks.chance(entry) >= LEAST_CHANCE
        ]

    def proof_s(self) -> float:
        """Of the plan that would be tried first, with the margin that its trials are given; of the
        reference where there is no other."""
        if able := self._view.unmeasured:
            return self._cost_s(self._plain_and_promising(able), ("denoiser", *PROOF))
        return self._cost_s(self._view.entries[0], PROOF)

    def every_denoiser(self, remaining_s: float | None) -> Proposal | None:
        for entry in self._view.entries:
            idle = not self._ledger.tried(entry.digest) and self._view.own_failure(entry) is None
            if idle and self._fits(remaining_s, entry, "denoiser", *PROOF):
                return self._proposal("denoiser", entry, "exhaustive", remaining_s, PROOF)
        return None

    def every_pipeline(self, remaining_s: float | None) -> Proposal | None:
        for entry in self._view.entries:
            idle = self._ledger.get("pipeline", entry.digest) is None
            ready = self._ledger.get("denoiser", entry.digest) is not None
            if idle and ready and self._view.own_failure(entry) is None:
                if self._fits(remaining_s, entry, *PROOF):
                    return self._proposal("pipeline", entry, "exhaustive", remaining_s, PROOF[1:])
        return None

    def _worth_exploring(
        self, able: Sequence[Entry], chosen: Entry, remaining_s: float | None
    ) -> bool:
        gain = max(self._view.gain(entry, self._view.incumbent_s) for entry in able)
        enough_time = self._fits(remaining_s, chosen, "denoiser", *PROOF, *PROOF)
        return gain >= max(self._least_gain(), MIN_GAIN if enough_time else SMALL_GAIN)

    def _least_gain(self) -> float:
        leader = self._view.leader
        measured = None if leader is None else self._view.first_timed(leader)
        if leader is None or measured is None or leader.digest not in self._step_ms:
            return MIN_GAIN
        as_fast = measured.step_ms <= AS_FAST * self._step_ms[leader.digest]
        return KNOWN_GAIN if as_fast else MIN_GAIN

    def _most_promising(self) -> Entry | None:
        target_s = self._view.incumbent_s
        able = [e for e in self._view.unmeasured if self._view.gain(e, target_s) >= MIN_GAIN]
        return self._plain_and_promising(able) if able else None

    def _ready(self, entry: Entry) -> bool:
        """Timed at the denoiser rung, not excluded, and not yet at the pipeline rung."""
        return self._ledger.get("pipeline", entry.digest) is None and (
            self._view.projected(entry) is not None and self._view.why_out(entry) is None
        )

    def _replay(self, entry: Entry, remaining_s: float | None, reason: str) -> Proposal | None:
        done = self._ledger.get("replay", entry.digest) is not None
        if done or not self._fits(remaining_s, entry, "replay"):
            return None
        return self._proposal("replay", entry, reason, remaining_s, ())

    def _proposal(
        self,
        rung: Rung,
        entry: Entry,
        reason: str,
        remaining_s: float | None,
        then: Sequence[Rung],
    ) -> Proposal:
        limit_s = None if remaining_s is None else remaining_s - self._cost_s(entry, then)
        return Proposal(rung, entry.plan, entry.estimate, reason, limit_s)

    def _fits(self, remaining_s: float | None, entry: Entry, *rungs: Rung) -> bool:
        return remaining_s is None or self._cost_s(entry, rungs) <= remaining_s

    def _cost_s(self, entry: Entry, rungs: Sequence[Rung]) -> float:
        return TIME_MARGIN * sum(self._durations.expected_s(rung, entry) for rung in rungs)

    def _plain_and_promising(self, able: Sequence[Entry]) -> Entry:
        """With nothing measured, an odd plan is only the more uncertain one: of those that compile
        quickly and promise nearly the most, by what failed so far, the best estimate in its
        simplest form."""
        quick = [entry for entry in able if trial_cost(entry.plan) <= 1.0] or able
        target_s = self._view.incumbent_s
        least = NEARLY * max(self._view.gain(entry, target_s) for entry in quick)
        near = (entry for entry in quick if self._view.gain(entry, target_s) >= least)
        return min(near, key=lambda entry: entry.order)

    def _worth(self, entry: Entry, target_s: float) -> float:
        """Expected gain for each second of trial."""
        gain = self._view.gain(entry, target_s)
        return gain / self._durations.expected_s("denoiser", entry) if self._by_time else gain
