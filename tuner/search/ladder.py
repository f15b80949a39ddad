"""How boldly steps are cached: by bisection, from what trials admitted and refused so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from registry.plan import StepCache

Verdict = Literal["admitted", "refused", "useless", "untried"]
"""Of one step cache on the best plan: its picture passed; it did not; it did not, and was no faster
than what passed already, or the trial failed, so that no milder one is worth a trial either."""


def next_step_cache(
    ladders: Sequence[Sequence[StepCache]],
    verdict: Callable[[StepCache], Verdict],
    known: frozenset[StepCache] = frozenset(),
) -> StepCache | None:
    """The next to try: the kinds in turn, each ladder from mild to bold. `known` are where an
    earlier search of the question ended: a kind begins there. None when every kind is settled."""
    found = (_next(ladder, [verdict(cache) for cache in ladder], known) for ladder in ladders)
    return next((cache for cache in found if cache is not None), None)


def _next(
    ladder: Sequence[StepCache], verdicts: Sequence[Verdict], known: frozenset[StepCache]
) -> StepCache | None:
    """Between the boldest that passed and the mildest that did not."""
    if "useless" in verdicts:
        return None
    low = max((place for place, v in enumerate(verdicts) if v == "admitted"), default=-1)
    high = min((place for place, v in enumerate(verdicts) if v == "refused"), default=len(ladder))
    if high - low < 2:
        return None
    begun = {"admitted", "refused"} & set(verdicts)
    hints = [] if begun else [place for place, cache in enumerate(ladder) if cache in known]
    return ladder[hints[0] if hints else (low + high) // 2]
