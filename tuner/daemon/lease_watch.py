"""Which leases are lost: their owner is dead, or nobody has renewed them for as long as they last.

Seen by a clock that cannot be set: a wall clock that jumps by a day ends no lease, and keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from registry.leases import Sighting


@dataclass(frozen=True)
class _Since:
    sighting: Sighting
    first_seen_s: float


class LeaseWatch:
    """`clock` gives monotonic seconds. How long a lease lasts is its owner's to say, whatever
    another daemon is told to."""

    def __init__(self, clock: Callable[[], float], is_gone: Callable[[str], bool]) -> None:
        self._clock, self._is_gone = clock, is_gone
        self._known: dict[int, _Since] = {}

    def lost(self, running: Sequence[Sighting]) -> tuple[Sighting, ...]:
        """Of the jobs running now, those to reap. Call it about once a heartbeat."""
        now_s = self._clock()
        self._known = {seen.job_id: self._since(seen, now_s) for seen in running}
        return tuple(
            since.sighting for since in self._known.values() if self._is_lost(since, now_s)
        )

    def _since(self, seen: Sighting, now_s: float) -> _Since:
        known = self._known.get(seen.job_id)
        return known if known is not None and known.sighting == seen else _Since(seen, now_s)

    def _is_lost(self, since: _Since, now_s: float) -> bool:
        waited_s = now_s - since.first_seen_s
        return waited_s >= since.sighting.lease_s or self._is_gone(since.sighting.owner)
