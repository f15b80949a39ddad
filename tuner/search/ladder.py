"""How boldly steps are cached: by bisection, from what trials admitted and refused so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from registry.plan import StepCache, TaylorSeerCache

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


def distinct(ladder: Sequence[StepCache], steps: int) -> tuple[StepCache, ...]:
    """Of the caches that leave out the same steps of so many the mildest: the others are the same
    computation, proved at this number alone. None of those that leave out nothing."""
    found: dict[frozenset[int] | StepCache, StepCache] = {}
    for cache in ladder:
        whole = whole_steps(cache, steps) if isinstance(cache, TaylorSeerCache) else None
        if whole is None or len(whole) < steps:
            found.setdefault(cache if whole is None else whole, cache)
    return tuple(found.values())


def whole_steps(cache: TaylorSeerCache, steps: int) -> frozenset[int]:
    """Which of `steps` steps, counted from 0, are computed. Source: diffusers 0.42,
    `TaylorSeerCacheHook._measure_should_compute`."""
    warmup, interval = cache.warmup_steps, cache.interval_steps
    return frozenset(
        step for step in range(steps) if step < warmup or (step - warmup - 1) % interval == 0
    )


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
