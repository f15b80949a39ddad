"""When the daemon looks at things: APScheduler's intervals, in memory alone.

APScheduler counts its intervals by the wall clock. Set back by a day, it would be silent for a day:
so who waits for a tick measures the silence by a clock that cannot be set, and begins anew.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

SILENCE = 3.0
"""Of the shortest interval: without a tick for longer, the clock was set."""


@dataclass(frozen=True)
class Every:
    """Something to do each `interval_s`, in a thread of the scheduler; never twice at once."""

    interval_s: float
    act: Callable[[], None]
    at_once: bool = False


class Ticks:
    """Runs each of `intervals` in its own time, and hands on what others put in with `post`.

    A tick that a suspended machine missed runs once when it wakes up.
    """

    def __init__(self, intervals: Mapping[str, Every]) -> None:
        self._intervals = dict(intervals)
        self._posted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._scheduler: Any = None

    def post(self, name: str) -> None:
        """Safe from any thread and from a signal handler."""
        self._posted.put(name)

    def wait(self, limit_s: float) -> frozenset[str]:
        """Every name that was posted by now, once; empty after `limit_s` without one."""
        names: set[str] = set()
        with suppress(queue.Empty):
            names.add(self._posted.get(timeout=limit_s))
            while True:
                names.add(self._posted.get_nowait())
        return frozenset(names)

    def begin_anew(self) -> None:
        """Count all intervals from now on."""
        for name in self._intervals:
            self._count_from_now(name)

    def change(self, intervals_s: Mapping[str, float]) -> None:
        """Count those from now on that are of another length."""
        for name, interval_s in intervals_s.items():
            every = self._intervals[name]
            if interval_s != every.interval_s:
                self._intervals[name] = replace(every, interval_s=interval_s)
                self._count_from_now(name)

    def _count_from_now(self, name: str) -> None:
        self._scheduler.reschedule_job(name, trigger=_trigger(self._intervals[name]))

    def __enter__(self) -> Self:
        executors = {"default": ThreadPoolExecutor(max_workers=len(self._intervals))}
        self._scheduler = BackgroundScheduler(executors=executors, timezone=UTC)
        for name, every in self._intervals.items():
            first = {"next_run_time": datetime.now(UTC)} if every.at_once else {}
            self._scheduler.add_job(
                every.act,
                _trigger(every),
                id=name,
                misfire_grace_time=None,
                coalesce=True,
                max_instances=1,
                **first,
            )
        self._scheduler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scheduler.shutdown(wait=False)


def _trigger(every: Every) -> IntervalTrigger:
    return IntervalTrigger(seconds=every.interval_s, timezone=UTC)
