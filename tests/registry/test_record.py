from __future__ import annotations

import pytest

from registry.record import WarmStart
from tests.registry import samples


def test_a_baseline_is_no_faster_than_itself() -> None:
    won = samples.record()
    assert won.plan == won.baseline_plan
    assert won.speedup == 1.0


def test_the_speed_up_is_of_one_run() -> None:
    other = samples.record(threads=2)
    ours, theirs = other.measurement.latency_s, other.baseline.latency_s
    assert ours is not None
    assert theirs is not None
    assert other.speedup == theirs / ours


@pytest.mark.parametrize(
    ("used", "saves_nothing", "misses"),
    [
        ({"graph_hits": 3}, False, 0),
        ({"graph_misses": 3}, True, 3),
        ({"graph_hits": 3, "library_misses": 9}, True, 9),
        ({"function_hits": 3, "library_hits": 9}, False, 0),
        ({"function_hits": 3, "library_misses": 9}, True, 9),
        ({"function_misses": 3, "graph_hits": 3}, False, 0),
        ({}, True, 0),
    ],
)
def test_a_warm_start_saves_where_code_and_its_libraries_are_taken(
    used: dict[str, int], saves_nothing: bool, misses: int
) -> None:
    """A function that is missing is traced, and may find its graph."""
    found = WarmStart(rung="ahead_of_time", **used)
    assert (found.saves_nothing, found.misses) == (saves_nothing, misses)
