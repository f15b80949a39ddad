"""Which plans stand beside the best: those that are better in something that matters."""

from __future__ import annotations

from collections.abc import Iterable

from registry.record import PeakMemory
from tuner.search.entry import Entry
from tuner.search.prospects import Prospects, Vector

SAME = (1.10, 1.10, 1.02, 1.25)
"""How much better in each part of a Vector (peak VRAM, host bytes, score, start-up) a plan must
be to count as better there: under this it is measurement noise or of no use to anyone."""


def covered(vector: Vector, by: Vector) -> bool:
    """Whether `by` is as good as `vector` in every part, or so nearly that nobody would mind."""
    return all(b <= v * same for v, b, same in zip(vector, by, SAME, strict=True))


def is_no_larger(memory: PeakMemory, *, than: PeakMemory) -> bool:
    """On the device and on the host, or so little that nobody would mind."""
    device, host = SAME[:2]
    return (
        memory.peak_vram_bytes <= than.peak_vram_bytes * device
        and memory.host_peak_bytes <= than.host_peak_bytes * host
    )


def uncovered(view: Prospects, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Of the entries, best score first, each that none before it covers. A plan that computes every
    step is covered by no other than such: its picture is nearer to the model's own."""
    kept: list[tuple[Entry, Vector]] = []
    for entry, vector in ranked(view, entries):
        like = [other for rival, other in kept if entry.caches_steps or not rival.caches_steps]
        if not any(covered(vector, other) for other in like):
            kept.append((entry, vector))
    return tuple(entry for entry, _ in kept)


def ranked(view: Prospects, entries: Iterable[Entry]) -> list[tuple[Entry, Vector]]:
    """Entries that have a vector, best score first; the champion, if among them, is the first."""
    known = [(entry, vector) for entry in entries if (vector := view.vector(entry)) is not None]
    return sorted(known, key=lambda item: (item[0] is not view.champion, item[1][2], item[0].order))
