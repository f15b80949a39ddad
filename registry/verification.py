"""Whether a published plan still does what its record says."""

from __future__ import annotations

from datetime import datetime

from registry.base import Frozen


class Verification(Frozen):
    """A record's plan run again, on a machine and with libraries equal to those it was proved with.

    `problems` says each way in which it no longer held, and is empty where it did. `latency_s` is
    the request's median then (None where it did not run), `peak_vram_bytes` its peak. `study` holds
    the trials.
    """

    record: str
    study: str
    verified_at: datetime
    latency_s: float | None = None
    peak_vram_bytes: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems
