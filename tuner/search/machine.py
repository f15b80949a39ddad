"""Which trial next: asked for a proposal, told of finished trials.

No I/O and no clock: the time left is an argument. The state is the set of finished trials, so a
study that was killed goes on by telling them again, in any order.

The way of a run: what an earlier search found best, where there was one; a few denoiser trials
that differ in what matters; the leader through the pipeline rung, so that something is proved
early; more denoiser trials while one can still win; the new leader, if it changed; replay of the
best; the same plan with step caches, where any may be tried, from mild to bold while pictures pass,
and replay of the best of those; then other finalists that no plan dominates, and those too near the
best to be told from it by trials at other times. Time too short for a sure proof is spent on an
unsure one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from registry.plan import Plan, StepCache
from registry.record import Measurement, Objective, Trial
from registry.workload import Workload
from tuner.candidate import Candidate, uncached_estimate
from tuner.objective import Judge
from tuner.search.caching import Caching
from tuner.search.entry import Entry, make_entry
from tuner.search.finalists import is_no_larger, uncovered
from tuner.search.ledger import Ledger
from tuner.search.parts import ANYTIME, EXHAUSTIVE, WHOLE, Parts
from tuner.search.proposal import Known, Proposal, Proven, Standing, Untried, UntriedKind
from tuner.search.prospects import Prospects
from tuner.search.stages import MIN_GAIN, Stages


class Search:
    """One study's search. `steps` is the number of denoising steps of a request, `denoiser` its
    component's name, `reference` the baseline, whose trial at the pipeline rung needs no verdict.
    `first` are the plans that an earlier search of the same question found best, the best first;
    those that are no candidates are left out, and of step caches it is known where to begin.
    `parts` are all of them but for a benchmark.

    Raises ValueError where there is no candidate at all.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        objective: Objective,
        workload: Workload,
        steps: int,
        denoiser: str,
        reference: Candidate | None = None,
        budget_bytes: int | None = None,
        exhaustive: bool = False,
        parts: Parts = WHOLE,
        first: Sequence[Known] = (),
    ) -> None:
        judge = Judge(objective, workload, steps)
        known = [*([reference] if reference else []), *candidates]
        if not known:
            raise ValueError("a search needs at least one candidate")
        distinct = {candidate.plan.digest: candidate for candidate in known}
        entries = [
            make_entry(candidate, digest, judge, denoiser, budget_bytes)
            for digest, candidate in distinct.items()
        ]
        self._entries = tuple(sorted(entries, key=lambda entry: entry.order))
        self._judge, self._denoiser = judge, denoiser
        self._reference = reference.plan.digest if reference else None
        self._budget_bytes = budget_bytes
        self._parts = parts
        self._stages = parts.stages or (EXHAUSTIVE if exhaustive else ANYTIME)
        self._first = [replace(item, plan=item.plan.caching_steps(None)) for item in first]
        caches = (item.plan.pipeline.step_cache for item in first)
        known_caches = frozenset(cache for cache in caches if cache is not None)
        self._caching = Caching(parts.step_caches.ladders, self._variant, known_caches)
        self._ledger = Ledger()
        self._latest: Prospects | None = None

    def tell(self, trial: Trial) -> None:
        """Take a finished trial into account. Telling one twice changes nothing."""
        self._admit(trial.plan)
        self._ledger.add(trial)
        self._latest = None

    def ask(self, remaining_s: float | None = None) -> Proposal | None:
        """The next trial, or None when the search is over. `remaining_s` None: no time limit."""
        stages = Stages(
            self._view, self._ledger, self._first, self._caching, by_time=self._parts.by_time
        )
        for name in self._stages:
            proposal: Proposal | None = getattr(stages, name)(remaining_s)
            if proposal is not None:
                return proposal
        return None

    @property
    def proof_s(self) -> float:
        """Seconds that the most promising plan takes from here until it is proved."""
        return Stages(self._view, self._ledger).proof_s()

    def best(self) -> Standing | None:
        """The best plan known so far, for a live view."""
        proven = self.proven()
        if proven:
            return Standing(proven[0].plan, "replay", proven[0].score_s)
        winner, leader = self._view.winner, self._view.leader
        if winner is not None and (score := self._view.passed(winner)):
            return Standing(winner.plan, "pipeline", score.value_s)
        if leader is not None and (score := self._view.projected(leader)):
            return Standing(leader.plan, "denoiser", score.value_s)
        return None

    def proven(self) -> tuple[Proven, ...]:
        """Replayed finalists that no other dominates, best first. A plan that the reference beat in
        the same run, at no more memory, is no answer, though the reference's own replay failed."""
        kept = uncovered(self._view, self._replayed())
        found = (self._proven(entry) for entry in kept if not self._loses_to_reference(entry))
        return tuple(item for item in found if item is not None)

    def in_doubt(self) -> tuple[Plan, ...]:
        """Plans that may be as good as the first of `proven`: their trials contradict each other,
        or the machine may have changed between them."""
        view = self._view
        champion = view.champion
        if champion is None or not view.replayed(champion):
            return ()
        rivals = [e for e in self._entries if view.passed(e) and e is not champion]
        if champion.caches_steps:
            rivals = [entry for entry in rivals if not entry.caches_steps]
        return tuple(entry.plan for entry in rivals if view.in_doubt(champion, entry))

    def untried(self) -> tuple[Untried, ...]:
        """Candidates that nothing ran of, each with its reason, best estimate first."""
        idle = [entry for entry in self._entries if not self._ledger.tried(entry.digest)]
        return tuple(Untried(e.plan, e.estimate, *self._why_untried(e)) for e in idle)

    def _admit(self, plan: Plan) -> None:
        """A plan with a step cache becomes a candidate as it is tried."""
        cache = plan.pipeline.step_cache
        if cache is None or any(entry.plan == plan for entry in self._entries):
            return
        plain = plan.caching_steps(None)
        base = next((entry for entry in self._entries if entry.plan == plain), None)
        entry = None if base is None else self._variant(base, cache)
        if entry is not None:
            self._entries = (*self._entries, entry)

    def _variant(self, base: Entry, cache: StepCache) -> Entry | None:
        """A plan with a step cache; None where rules forbid it."""
        plan = base.plan.caching_steps(cache)
        if not self._parts.step_caches.allowed(plan):
            return None
        candidate = Candidate(plan, uncached_estimate(base.estimate))
        return make_entry(candidate, plan.digest, self._judge, self._denoiser, self._budget_bytes)

    @property
    def _view(self) -> Prospects:
        if self._latest is None:
            self._latest = Prospects(
                self._entries,
                self._ledger,
                self._judge,
                reference=self._reference,
                budget_bytes=self._budget_bytes,
                parts=self._parts,
            )
        return self._latest

    def _replayed(self) -> list[Entry]:
        """Entries that passed the gate and whose replay repeated it."""
        return [entry for entry in self._entries if self._view.replayed(entry)]

    def _loses_to_reference(self, entry: Entry) -> bool:
        """By the reference's own proof, whatever became of its replay."""
        if self._reference is None or entry.digest == self._reference:
            return False
        ours = self._ledger.measurement("pipeline", self._reference)
        theirs = self._ledger.measurement("pipeline", entry.digest)
        if ours is None or theirs is None or self._is_over_budget(ours):
            return False
        scores = self._judge.measured(ours), self._judge.measured(theirs)
        slower = scores[0] is not None and scores[1] is not None and scores[0].beats(scores[1])
        return slower and is_no_larger(ours.memory, than=theirs.memory)

    def _is_over_budget(self, measured: Measurement) -> bool:
        budget_bytes = self._budget_bytes
        return budget_bytes is not None and measured.memory.peak_vram_bytes > budget_bytes

    def _proven(self, entry: Entry) -> Proven | None:
        trial = self._ledger.get("pipeline", entry.digest)
        replay = self._ledger.get("replay", entry.digest)
        score = self._view.passed(entry)
        if trial is None or replay is None or score is None:
            return None
        return Proven(entry.plan, entry.estimate, trial, replay, score.value_s)

    def _why_untried(self, entry: Entry) -> tuple[str, UntriedKind]:
        view = self._view
        out = view.why_out(entry)
        if out is not None:
            return out, "given_up"
        if view.projected(entry) is not None:
            return "timed with another plan of the same denoiser, which was no better", "outbid"
        bound_s, incumbent_s = view.bound_s(entry), view.incumbent_s
        if bound_s >= incumbent_s:
            return f"at best {bound_s:.3g} s, and {incumbent_s:.3g} s was measured", "outbid"
        predicted = f"predicted {view.predicted_s(entry):.3g} s"
        if view.gain(entry, incumbent_s) < MIN_GAIN:
            return f"too little to gain; {predicted}", "outbid"
        return f"no time; {predicted}", "no_time"
