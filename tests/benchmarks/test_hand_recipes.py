"""Recipes on a tiny pipeline, and which of them is the best within a budget."""

from __future__ import annotations

import pytest

from benchmarks.hand_recipes import GB, Row, best_within, line, measure, parse, verdict

QUICK = Row("quick", steps=2, step_ms=10.0, request_s=1.0, first_s=2.0, peak_bytes=30 * GB)
SMALL = Row("small", steps=2, step_ms=50.0, request_s=3.0, first_s=2.0, peak_bytes=8 * GB)
BROKEN = Row("broken", failure="ValueError: they do not go together")
OURS = Row("abcd", steps=2, step_ms=20.0, request_s=1.5, first_s=2.0, peak_bytes=7 * GB)
TINY = ["--model", "tiny-flux", "--resolution", "64x64", "--dtype", "float32", "--steps", "2"]


@pytest.mark.parametrize("name", ["resident", "layerwise float8"])
def test_a_recipe_is_timed(name: str) -> None:
    row = measure(name, parse(TINY))
    assert row.failure is None
    assert row.step_ms > 0
    assert row.request_s > 0
    assert row.name in line(row)


def test_what_cannot_run_says_why() -> None:
    row = measure("group offload by leaf", parse(TINY))
    assert row.failure is not None
    assert "streams" in row.failure
    assert row.failure[:40] in line(row)


@pytest.mark.parametrize(("budget_gb", "best"), [(80, QUICK), (30, QUICK), (29, SMALL), (7, None)])
def test_the_best_is_the_quickest_that_stays_within(budget_gb: int, best: Row | None) -> None:
    assert best_within([SMALL, BROKEN, QUICK], budget_gb * GB) == best


def test_a_record_is_compared_at_the_budget() -> None:
    rows = [QUICK, SMALL, BROKEN, OURS]
    said = verdict(rows, 8 * GB, ["abcd"])
    assert said.endswith("50.0 ms a step (small); record abcd 20.0 ms, 2.50 times as fast")
    assert "record" not in verdict(rows, 8 * GB, [])
    assert verdict([BROKEN], 8 * GB, []).endswith("no recipe stays within it")
