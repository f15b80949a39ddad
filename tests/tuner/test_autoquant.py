"""The choice of schemes is the best there is: held against every choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.plan import LayerScheme
from tuner.autoquant import Budget, LayerChoice, LayerGroup, choose

SCHEMES: tuple[LayerScheme, ...] = ("none", "int8_dynamic", "float8_dynamic_row")
EIGHTHS = st.integers(0, 64).map(lambda value: value / 8)
"""Sums of these are exact, so that a budget is kept or not whatever the order of adding."""


def group(*costs: tuple[float, float, int], name: str = "blocks.*.to_q") -> LayerGroup:
    choices = tuple(
        LayerChoice(scheme, ms, noise, size)
        for scheme, (ms, noise, size) in zip(SCHEMES, costs, strict=False)
    )
    return LayerGroup((name,), choices)


GROUPS = st.lists(
    st.lists(st.tuples(EIGHTHS, EIGHTHS, st.integers(0, 20)), min_size=1, max_size=3).map(
        lambda costs: group(*costs)
    ),
    max_size=6,
)
LIMITS = st.builds(
    Budget,
    noise=st.one_of(st.just(math.inf), st.integers(0, 200).map(lambda value: value / 8)),
    weight_bytes=st.one_of(st.just(math.inf), st.integers(0, 70)),
)


def total(chosen: Sequence[LayerChoice]) -> tuple[float, float, int]:
    return (
        sum(choice.ms for choice in chosen),
        sum(choice.noise for choice in chosen),
        sum(choice.weight_bytes for choice in chosen),
    )


def best_by_trying_all(groups: Sequence[LayerGroup], budget: Budget) -> float | None:
    sums = [total(chosen) for chosen in product(*(item.choices for item in groups))]
    kept = [ms for ms, noise, size in sums if noise <= budget.noise and size <= budget.weight_bytes]
    return min(kept, default=None)


@settings(max_examples=400, deadline=None)
@given(groups=GROUPS, budget=LIMITS)
def test_no_choice_is_faster_within_the_budget(groups: list[LayerGroup], budget: Budget) -> None:
    best_ms = best_by_trying_all(groups, budget)
    chosen = choose(groups, budget)
    if best_ms is None:
        assert chosen is None
        return
    assert chosen is not None
    ms, noise, size = total(chosen)
    assert ms == best_ms
    assert noise <= budget.noise
    assert size <= budget.weight_bytes
    assert all(item in own.choices for item, own in zip(chosen, groups, strict=True))


def test_without_limits_each_group_takes_its_fastest() -> None:
    groups = [group((2.0, 0.0, 8), (1.0, 0.5, 4)), group((1.0, 0.0, 8), (1.5, 0.5, 4))]
    chosen = choose(groups, Budget())
    assert chosen is not None
    assert [choice.scheme for choice in chosen] == ["int8_dynamic", "none"]


def test_noise_is_spent_where_it_buys_most() -> None:
    groups = [group((10.0, 0.0, 8), (6.0, 1.0, 4)), group((10.0, 0.0, 8), (9.0, 1.0, 4))]
    chosen = choose(groups, Budget(noise=1.0))
    assert chosen is not None
    assert [choice.scheme for choice in chosen] == ["int8_dynamic", "none"]


def test_too_few_bytes_quantize_a_layer_that_gains_nothing() -> None:
    groups = [group((1.0, 0.0, 8), (1.5, 0.5, 4))]
    chosen = choose(groups, Budget(weight_bytes=5))
    assert chosen is not None
    assert chosen[0].scheme == "int8_dynamic"
    assert choose(groups, Budget(noise=0.1, weight_bytes=5)) is None


def test_nothing_to_choose_is_a_choice() -> None:
    assert choose([], Budget(noise=0.0, weight_bytes=0)) == ()


@pytest.mark.parametrize("alike", [True, False])
def test_as_many_groups_as_a_large_model_has(alike: bool) -> None:
    """40 groups of 3: 10¹⁹ choices. Alike, as random weights make them, and each its own."""
    groups = [
        group(
            (4.0 if alike else 4.0 + 0.37 * (at % 7), 0.0, 200),
            (2.5 if alike else 2.5 + 0.21 * (at % 5), 0.010 + 0.0007 * (at % 3), 101),
            (2.0 if alike else 2.0 + 0.33 * (at % 11), 0.021 + 0.0011 * (at % 4), 100),
        )
        for at in range(40)
    ]
    chosen = choose(groups, Budget(noise=0.5, weight_bytes=6000))
    assert chosen is not None
    ms, noise, size = total(chosen)
    assert noise <= 0.5
    assert size <= 6000
    assert ms < 40 * 4.0
