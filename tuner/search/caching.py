"""The best plan once more with a step cache: which one, and what came of those before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registry.plan import StepCache
from registry.record import Trial
from tuner.choices import Ladder
from tuner.search.entry import Entry
from tuner.search.ladder import Verdict, next_step_cache
from tuner.search.ledger import Ledger
from tuner.search.prospects import Prospects
from tuner.search.setbacks import is_rejected


def _no_variant(_: Entry, __: StepCache) -> Entry | None:
    return None


@dataclass(frozen=True)
class Caching:
    """`ladders` are the step caches of each kind from mild to bold. `variant` is a plan with one of
    them, None where rules forbid it. `known` were the best plan's in an earlier search."""

    ladders: tuple[Ladder, ...] = ()
    variant: Callable[[Entry, StepCache], Entry | None] = _no_variant
    known: frozenset[StepCache] = frozenset()

    def next(self, view: Prospects, ledger: Ledger) -> Entry | None:
        """The best plan without a step cache, with the one to try now."""
        base = view.plain_winner
        if base is None:
            return None

        def verdict(cache: StepCache) -> Verdict:
            entry = self.variant(base, cache)
            trial = None if entry is None else ledger.get("pipeline", entry.digest)
            return "useless" if entry is None else _verdict(trial, view)

        cache = next_step_cache(self.ladders, verdict, self.known)
        return None if cache is None else self.variant(base, cache)


def _verdict(trial: Trial | None, view: Prospects) -> Verdict:
    """Caches milder than one that was refused are slower: they can only win if it would have."""
    if trial is None:
        return "untried"
    if is_rejected(trial):
        return "refused" if view.would_win(trial) else "useless"
    return "admitted" if trial.measurement is not None else "useless"
