"""Ticks come, are not piled up, and go on after the clock was set."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from tuner.daemon.ticks import Every, Ticks

SHORT_S = 0.05
LONG_S = 3600.0


def test_what_was_posted_comes_once() -> None:
    ticks = Ticks({})
    for name in ("step", "step", "stop"):
        ticks.post(name)
    assert ticks.wait(1.0) == {"step", "stop"}
    assert ticks.wait(0) == frozenset()


def test_ticks_come_by_themselves() -> None:
    posted = Ticks({"step": Every(SHORT_S, lambda: posted.post("step"))})
    with posted:
        assert [posted.wait(10.0) for _ in range(3)] == [{"step"}] * 3


def test_what_is_due_at_once_does_not_wait_for_its_interval() -> None:
    came = threading.Event()
    with Ticks({"drift": Every(LONG_S, came.set, at_once=True)}):
        assert came.wait(10.0)


def test_an_interval_that_changes_counts_from_now() -> None:
    ticks = Ticks({"step": Every(LONG_S, lambda: ticks.post("step"))})
    with ticks:
        ticks.change({"step": LONG_S})
        assert ticks.wait(3 * SHORT_S) == frozenset()
        ticks.change({"step": SHORT_S})
        assert ticks.wait(10.0) == {"step"}
        ticks.begin_anew()
        assert ticks.wait(10.0) == {"step"}


def test_a_clock_set_back_by_a_day_is_silence_for_a_moment() -> None:
    """What APScheduler makes of it: the next tick lies a day ahead."""
    ticks = Ticks({"step": Every(SHORT_S, lambda: ticks.post("step"))})
    with ticks:
        assert ticks.wait(10.0)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        ticks._scheduler.modify_job("step", next_run_time=tomorrow)
        while ticks.wait(5 * SHORT_S):
            pass
        ticks.begin_anew()
        assert ticks.wait(10.0) == {"step"}


def test_a_tick_missed_in_sleep_comes_once_on_waking() -> None:
    """Hours late, and for all that were missed together."""
    ticks = Ticks({"step": Every(LONG_S, lambda: ticks.post("step"))})
    with ticks:
        asleep = datetime.now(UTC) - timedelta(hours=5)
        ticks._scheduler.modify_job("step", next_run_time=asleep)
        assert ticks.wait(10.0) == {"step"}
        assert ticks.wait(3 * SHORT_S) == frozenset()
