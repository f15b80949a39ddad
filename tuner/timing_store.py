"""Where a study finds timings of blocks and layers, and keeps its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from registry.timing import Timing, TimingKey


class TimingsOfOneRun:
    """Kept in memory, and gone with the run."""

    def __init__(self) -> None:
        self._timings: dict[TimingKey, Timing] = {}

    def known(self, keys: Iterable[TimingKey]) -> Mapping[TimingKey, Timing]:
        return {key: self._timings[key] for key in keys if key in self._timings}

    def keep(self, timings: Sequence[Timing]) -> None:
        self._timings |= {timing.key: timing for timing in timings}
