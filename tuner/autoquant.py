"""A quantization scheme for each group of layers: the least time within a noise and a byte budget.

Pure and exact. Groups are added one after another, and of the partial choices only those are kept
that no other beats in time, noise and bytes at once and that could still end better than a choice
already found; a bound by Lagrange multipliers says what the rest can reach at best.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry.plan import LayerScheme


@dataclass(frozen=True)
class LayerChoice:
    """All layers of a group under one scheme: milliseconds and noise of a step, bytes of weights.

    `noise` is noise over signal, a ratio of powers; shares of groups add up.
    """

    scheme: LayerScheme
    ms: float
    noise: float
    weight_bytes: int


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share a choice: one of each repeated block, named by fnmatch `patterns`."""

    patterns: tuple[str, ...]
    choices: tuple[LayerChoice, ...]


@dataclass(frozen=True)
class Budget:
    """What a choice for all groups may cost together."""

    noise: float = math.inf
    weight_bytes: float = math.inf


@dataclass(frozen=True)
class _Part:
    """A choice for the first groups, and what it costs; `last` of them, `before` those before."""

    ms: float = 0.0
    noise: float = 0.0
    weight_bytes: int = 0
    last: LayerChoice | None = None
    before: _Part | None = None

    def with_choice(self, choice: LayerChoice) -> _Part:
        return _Part(
            self.ms + choice.ms,
            self.noise + choice.noise,
            self.weight_bytes + choice.weight_bytes,
            choice,
            self,
        )

    def choices(self) -> tuple[LayerChoice, ...]:
        found: list[LayerChoice] = []
        part: _Part | None = self
        while part is not None and part.last is not None:
            found.append(part.last)
            part = part.before
        return tuple(reversed(found))


def choose(groups: Sequence[LayerGroup], budget: Budget) -> tuple[LayerChoice, ...] | None:
    """The fastest choice for each group, in their order; None where nothing keeps the budget."""
    options = [_undominated(group.choices) for group in groups]
    bounds = _Bounds(options, budget)
    target_ms = _greedy_ms(options, budget)
    parts = [_Part()]
    for at, choices in enumerate(options):
        grown = (part.with_choice(choice) for part in parts for choice in choices)
        bounded = ((part, bounds.least_ms(part, at + 1)) for part in grown)
        parts = _front(part for part, ms in bounded if ms <= target_ms and ms < math.inf)
    return min(parts, key=lambda part: part.ms).choices() if parts else None


class _Bounds:
    """What the groups from the n-th on cost at least, each alone and together."""

    def __init__(self, options: Sequence[Sequence[LayerChoice]], budget: Budget) -> None:
        self._budget = budget
        self._ms = _suffix([min(choice.ms for choice in group) for group in options])
        self._noise = _suffix([min(choice.noise for choice in group) for group in options])
        self._bytes = _suffix([min(choice.weight_bytes for choice in group) for group in options])
        self._prices = _prices(options, budget)
        self._priced = _suffix([_cheapest(group, self._prices) for group in options])

    def least_ms(self, part: _Part, at: int) -> float:
        """Of any whole choice that begins with `part`, groups from `at` on being open; infinity
        where none keeps the budget."""
        if part.noise + self._noise[at] > self._budget.noise:
            return math.inf
        if part.weight_bytes + self._bytes[at] > self._budget.weight_bytes:
            return math.inf
        return max(part.ms + self._ms[at], self._relaxed_ms(part, at))

    def _relaxed_ms(self, part: _Part, at: int) -> float:
        """With budgets sold at a price instead of kept; a hair less, for what rounding may take."""
        bound = part.ms + self._priced[at]
        for price, used, limit in zip(
            self._prices,
            (part.noise, part.weight_bytes),
            (self._budget.noise, self._budget.weight_bytes),
            strict=True,
        ):
            bound -= price * (limit - used) if price else 0.0
        return bound - 1e-9 * abs(part.ms + self._priced[at])


Prices = tuple[float, float]
"""Milliseconds that a unit of noise, and of weight bytes, is worth."""
PASSES = 3


def _prices(options: Sequence[Sequence[LayerChoice]], budget: Budget) -> Prices:
    """Those with the best bound, found one after the other: the best of one price is where two
    choices of some group are worth the same. Any prices would give a true bound."""
    prices = [0.0, 0.0]
    limits = (budget.noise, budget.weight_bytes)
    for _ in range(PASSES):
        for axis in (0, 1):
            if math.isfinite(limits[axis]):
                tried = {0.0, *_break_even(options, (prices[0], prices[1]), axis)}
                prices[axis] = max(
                    sorted(tried), key=lambda price: _dual_ms(options, limits, prices, axis, price)
                )
    return prices[0], prices[1]


def _dual_ms(
    options: Sequence[Sequence[LayerChoice]],
    limits: tuple[float, float],
    prices: Sequence[float],
    axis: int,
    price: float,
) -> float:
    tried = (price, prices[1]) if axis == 0 else (prices[0], price)
    sold = sum(p * limit for p, limit in zip(tried, limits, strict=True) if p)
    return sum(_cheapest(group, tried) for group in options) - sold


def _break_even(
    options: Sequence[Sequence[LayerChoice]], prices: Prices, axis: int
) -> Iterator[float]:
    other = (0.0, prices[1]) if axis == 0 else (prices[0], 0.0)
    for group in options:
        for one in group:
            for two in group:
                saved = _costs(one)[axis] - _costs(two)[axis]
                if saved > 0 and (dearer := _priced(two, other) - _priced(one, other)) > 0:
                    yield dearer / saved


def _cheapest(group: Sequence[LayerChoice], prices: Prices) -> float:
    return min(_priced(choice, prices) for choice in group)


def _priced(choice: LayerChoice, prices: Prices) -> float:
    return choice.ms + prices[0] * choice.noise + prices[1] * choice.weight_bytes


def _costs(choice: LayerChoice) -> tuple[float, float]:
    return choice.noise, float(choice.weight_bytes)


def _suffix(values: Sequence[float]) -> list[float]:
    """Sums from each place to the end, then 0."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _undominated(choices: Sequence[LayerChoice]) -> tuple[LayerChoice, ...]:
    found = _front(_Part().with_choice(choice) for choice in choices)
    return tuple(choice for part in found for choice in part.choices())


def _front(parts: Iterator[_Part]) -> list[_Part]:
    """Those that no other is as good as everywhere: by time, a staircase of noise and bytes."""
    kept: list[_Part] = []
    noises: list[float] = []
    sizes: list[int] = []
    for part in sorted(parts, key=lambda item: (item.ms, item.noise, item.weight_bytes)):
        at = bisect_right(noises, part.noise)
        if at and sizes[at - 1] <= part.weight_bytes:
            continue
        kept.append(part)
        end = at
        while end < len(sizes) and sizes[end] >= part.weight_bytes:
            end += 1
        noises[at:end], sizes[at:end] = [part.noise], [part.weight_bytes]
    return kept


def _greedy_ms(options: Sequence[Sequence[LayerChoice]], budget: Budget) -> float:
    """Of some choice that keeps the budget, infinity where neither beginning does: from the least
    noise or the fewest bytes, each group in turn takes its fastest that still fits."""
    return min(_descended_ms(options, budget, axis) for axis in (0, 1))


def _descended_ms(options: Sequence[Sequence[LayerChoice]], budget: Budget, axis: int) -> float:
    chosen = [min(group, key=lambda choice: (_costs(choice)[axis], choice.ms)) for group in options]
    if not _keeps(chosen, budget):
        return math.inf
    for at, group in enumerate(options):
        for choice in sorted(group, key=lambda item: item.ms):
            if _keeps([*chosen[:at], choice, *chosen[at + 1 :]], budget):
                chosen[at] = choice
                break
    return sum(choice.ms for choice in chosen) * (1 + 1e-12)


def _keeps(chosen: Sequence[LayerChoice], budget: Budget) -> bool:
    noise = sum(choice.noise for choice in chosen)
    size = sum(choice.weight_bytes for choice in chosen)
    return noise <= budget.noise and size <= budget.weight_bytes
