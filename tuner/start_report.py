"""How an app's pipeline came by its compiled code, and what it takes: asked at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from pydantic import PrivateAttr

from registry.base import Frozen
from registry.record import StartRung, WarmStart

Counted = Callable[[], WarmStart]
Peak = Callable[[], int | None]


def nothing_taken() -> WarmStart:
    """Of a start without artifacts."""
    return WarmStart(rung="compile")


def no_device() -> None:
    """The peak of a start that used none."""


class StartReport(Frozen):
    """`artifacts` is "loaded", "none" (the plan has no use for any, or none was published for this
    environment) or why they were refused, each reason once in `refused`. `rung` says how compiled
    code is come by, as far as is known when the report is made."""

    artifacts: str = "none"
    rung: StartRung = "compile"
    refused: tuple[str, ...] = ()
    # pydantic would take a function that is a default for a descriptor.
    _counted: Counted = PrivateAttr(default_factory=lambda: nothing_taken)
    _peak: Peak = PrivateAttr(default_factory=lambda: no_device)

    def asking(self, counted: Counted, peak: Peak) -> Self:
        """The same report, which asks these whenever it is asked."""
        found = self.model_copy()
        found._counted, found._peak = counted, peak  # noqa: SLF001 (a copy of this very report)
        return found

    @property
    def warm_start(self) -> WarmStart:
        """The rung, what torch took from the artifacts up to now, and what it compiled all the
        same. Nothing is compiled before the first image."""
        return self._counted()

    @property
    def peak_vram_bytes(self) -> int | None:
        """What torch's allocator held at most in this process up to now; None on a CPU. The context
        and libraries come on top."""
        return self._peak()
