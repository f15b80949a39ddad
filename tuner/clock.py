"""Time, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        ...

    def now(self) -> datetime:
        """The time of day, in UTC."""
        ...


class SystemClock:
    def monotonic_s(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


class TimeLimit:
    """How long a run may still take, from when this is made. `limit_s` None is no limit."""

    def __init__(self, clock: Clock, limit_s: float | None) -> None:
        self._clock, self._limit_s = clock, limit_s
        self._started_s = clock.monotonic_s()

    @property
    def remaining_s(self) -> float | None:
        """Never below 0; None without a limit."""
        if self._limit_s is None:
            return None
        return max(0.0, self._limit_s - (self._clock.monotonic_s() - self._started_s))

    @property
    def is_over(self) -> bool:
        return self.remaining_s == 0.0
