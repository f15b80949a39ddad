"""Which of a component's repeated blocks stream from the host, and which stay on the device.

Pure arithmetic, so that what predicts memory and what places weights agree to the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from math import gcd


def streamed_blocks(
    kinds: Sequence[str], sizes: Sequence[int], resident: int, slots: int
) -> tuple[bool, ...]:
    """For each block, in the order in which it runs, whether it streams.

    Blocks of one kind share `slots` buffers. At least `resident` blocks stay, spread so that the
    bytes to copy come evenly along the way: blocks of a component take about equal times whatever
    they weigh, so more of the heavy ones stay. A kind that would stream no more blocks than it has
    slots stays whole: its slots would take the same room.
    """
    unit = max(gcd(*sizes), 1)
    relative = [size // unit for size in sizes]
    counts = _counts(kinds, relative, max(len(kinds) - resident, 0))
    chosen = [False] * len(kinds)
    for kind, count in counts.items():
        own = [index for index, item in enumerate(kinds) if item == kind]
        if count > slots:
            for place, index in enumerate(own):
                chosen[index] = place * count % len(own) < count
    return tuple(chosen)


def slot_bytes(
    kinds: Sequence[str], sizes: Sequence[int], streamed: Sequence[bool], slots: int
) -> dict[str, int]:
    """Bytes of each kind's slots together: every slot takes the kind's largest streamed block."""
    largest: dict[str, int] = {}
    for kind, size in compress(zip(kinds, sizes, strict=True), streamed):
        largest[kind] = max(largest.get(kind, 0), size)
    return {kind: slots * size for kind, size in largest.items()}


def _counts(kinds: Sequence[str], sizes: Sequence[int], streamed: int) -> dict[str, int]:
    """How many of each kind stream, `streamed` in all: a share of it that falls with its size."""
    members = {kind: list(kinds).count(kind) for kind in dict.fromkeys(kinds)}
    means = dict.fromkeys(members, 0.0)
    for kind, size in zip(kinds, sizes, strict=True):
        means[kind] += max(size, 1) / members[kind]
    rate = _rate(members, means, streamed)
    exact = {kind: count * min(1.0, rate / means[kind]) for kind, count in members.items()}
    counts = {kind: int(share + 1e-9) for kind, share in exact.items()}
    by_rest = sorted(members, key=lambda kind: counts[kind] - exact[kind])
    open_kinds = [kind for kind in by_rest if counts[kind] < members[kind]]
    for kind in open_kinds[: streamed - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _rate(members: dict[str, int], means: dict[str, float], streamed: int) -> float:
    """Bytes to stream for each block that runs, so that `streamed` blocks stream in all."""
    low, high = 0.0, max(means.values(), default=0.0)
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        total = sum(count * min(1.0, middle / means[kind]) for kind, count in members.items())
        low, high = (middle, high) if total < streamed else (low, middle)
    return high
