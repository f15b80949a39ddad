"""Which plans to record, in which order: a seeded, stratified sample of a space.

A recording may be cut off at any time, so each next plan is the one that covers most for the time
it takes: values of a choice, and pairs of values, count the more the less often they were taken.
Every few plans the best predicted one is taken instead: a search is judged by how it tells the best
plans apart, and these would be rare in an even sample. Plans that compile for long come now and
then.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from registry.plan import Plan
from registry.record import Rung
from tuner.candidate import Candidate
from tuner.search.features import denoiser_features, features, trial_cost

PROMISING_EVERY = 3
SLOW_EVERY = 12
"""Of so many plans one is taken for its prediction, or although it compiles for long."""
QUICK_COST = 1.0
"""What a plan that compiles its blocks by Inductor's defaults costs to compile."""

START_S = 10.0
COMPILE_S = 15.0
HOST_LOAD_BYTES_PER_S = 1e9
STEPS = 10
"""What trials of a 12 B denoiser took on a data-centre GPU: only ratios matter here."""


@dataclass(frozen=True)
class Choice:
    """A candidate that may be recorded. `dropped` is why a search would not look at it."""

    candidate: Candidate
    dropped: str | None = None

    @property
    def plan(self) -> Plan:
        return self.candidate.plan

    @property
    def compile_cost(self) -> float:
        """Relative: plans of one cost compile about as long."""
        return trial_cost(self.plan)

    @property
    def is_slow(self) -> bool:
        return self.compile_cost > QUICK_COST

    @property
    def expected_s(self) -> float:
        """Of a trial, in proportion to others: what is compiled, what stays on the host, steps."""
        estimate = self.candidate.estimate
        compile_s = COMPILE_S * (self.compile_cost - 0.5)
        placing_s = estimate.host_bytes / HOST_LOAD_BYTES_PER_S
        return START_S + compile_s + placing_s + STEPS * estimate.step_ms / 1000


def distinct(choices: Sequence[Choice], rung: Rung, denoiser: str) -> tuple[Choice, ...]:
    """One for each denoiser, the first, where only its steps are timed; otherwise all of them."""
    if rung != "denoiser":
        return tuple(choices)
    found: dict[frozenset[str], Choice] = {}
    for choice in choices:
        found.setdefault(denoiser_features(choice.plan, denoiser), choice)
    return tuple(found.values())


def in_order(
    choices: Sequence[Choice],
    rung: Rung,
    denoiser: str,
    seed: int,
    *,
    limit: int | None = None,
    slow_every: int = SLOW_EVERY,
) -> tuple[Choice, ...]:
    """At most `limit` of them, one in `slow_every` one that compiles for long as far as there are
    others. The same for the same arguments."""
    luck = random.Random(seed)  # noqa: S311 - a sample, no secret
    items = [
        _Stratified(choice, strata, luck.random())
        for choice, strata in zip(choices, _strata(choices, rung, denoiser), strict=True)
    ]
    quick = _Pool([item for item in items if not item.choice.is_slow])
    slow = _Pool([item for item in items if item.choice.is_slow])
    taken: Counter[str] = Counter()
    order: list[Choice] = []
    while len(order) < min(len(choices), limit or len(choices)):
        wants_slow = len(order) % slow_every == slow_every - 1
        pool = (slow or quick) if wants_slow else (quick or slow)
        order.append(pool.take(taken))
    return tuple(order)


def shard(items: Sequence[Choice], index: int, count: int) -> tuple[Choice, ...]:
    """The `index`th of `count` parts: dealt out in order, each to the part that is expected to be
    free first, so that each has the coverage of the whole."""
    parts: list[list[Choice]] = [[] for _ in range(count)]
    busy_s = [0.0] * count
    for item in items:
        free = min(range(count), key=lambda part: (busy_s[part], part))
        parts[free].append(item)
        busy_s[free] += item.expected_s
    return tuple(parts[index])


@dataclass(frozen=True)
class _Stratified:
    """A choice with the values, and pairs of values, that it stands for. `luck` decides between
    equals."""

    choice: Choice
    strata: tuple[str, ...]
    luck: float

    def added(self, taken: Counter[str]) -> float:
        """By how much it covers what was seldom taken, for its time; it can only fall. Squared, so
        that what takes long waits until the rest is covered."""
        gain = sum(1.0 / (1 + taken[name]) ** 2 for name in self.strata)
        return gain / self.choice.expected_s**2

    @property
    def promise(self) -> tuple[float, float, float]:
        """Sorts the best predicted first. Those that compile for long by that first."""
        seconds = self.choice.expected_s if self.choice.is_slow else 0.0
        return (seconds, self.choice.candidate.estimate.latency_s, self.luck)


class _Pool:
    """Choices that were not taken yet. The heap holds what each added when it was looked at last:
    the first one that still adds as much is the best."""

    def __init__(self, items: Sequence[_Stratified]) -> None:
        self._items = items
        self._open = set(range(len(items)))
        self._heap = [self._entry(at, Counter()) for at in self._open]
        heapq.heapify(self._heap)
        self._promising = iter(sorted(self._open, key=lambda at: items[at].promise))
        self._turns = 0

    def __len__(self) -> int:
        return len(self._open)

    def take(self, taken: Counter[str]) -> Choice:
        """The next one; what it stands for is added to `taken`."""
        self._turns += 1
        at = self._promising_one() if self._turns % PROMISING_EVERY == 0 else self._widest(taken)
        self._open.discard(at)
        taken.update(self._items[at].strata)
        return self._items[at].choice

    def _promising_one(self) -> int:
        return next(at for at in self._promising if at in self._open)

    def _widest(self, taken: Counter[str]) -> int:
        while True:
            at = heapq.heappop(self._heap)[-1]
            if at not in self._open:
                continue
            current = self._entry(at, taken)
            if not self._heap or current <= self._heap[0]:
                return at
            heapq.heappush(self._heap, current)

    def _entry(self, at: int, taken: Counter[str]) -> tuple[float, float, int]:
        return (-self._items[at].added(taken), self._items[at].luck, at)


def _strata(choices: Sequence[Choice], rung: Rung, denoiser: str) -> list[tuple[str, ...]]:
    """Of each choice the values that not all have, and their pairs."""
    describe = denoiser_features if rung == "denoiser" else features
    values = [describe(choice.plan, denoiser) for choice in choices]
    common = frozenset.intersection(*values) if values else frozenset()
    return [_with_pairs(item - common) for item in values]


def _with_pairs(values: frozenset[str]) -> tuple[str, ...]:
    ordered = sorted(values)
    return (*ordered, *(f"{one}&{other}" for one, other in combinations(ordered, 2)))
