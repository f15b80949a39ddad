"""Times short calls against each other: bursts on the device's own clock, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from registry.timing import Timing, TimingKey
from tuner.pipeline.timing import DeviceClock, median_and_mad

Call = Callable[[], object]

BURST_S = 0.03
"""Long against a clock's grain and what the host needs to start the next call."""
MAX_CALLS = 200
FIRST_BURSTS = 3
NOISY_SHARE = 0.05
"""A median absolute deviation of more than this share of the median is noise."""


class Stopwatch:
    """On one device. Calls must leave their results on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clock = DeviceClock(device)

    def calls_in_burst(self, call: Call) -> int:
        """How many calls a burst takes, by one of two; the first is for caches."""
        self.burst_ms(call, 1)
        return max(1, min(MAX_CALLS, int(BURST_S * 1000 / max(self.burst_ms(call, 1), 1e-6))))

    def burst_ms(self, call: Call, count: int) -> float:
        """Milliseconds of each of `count` calls that follow one another."""
        self._clock.wait()
        start = self._clock.mark()
        for _ in range(count):
            call()
        end = self._clock.mark()
        self._clock.wait()
        return self._clock.elapsed_s(start, end) * 1000.0 / count


class Contestant:
    """Something timed, and its samples so far, one for each burst: milliseconds a unit, where a
    call does `units` of the same work."""

    def __init__(
        self,
        key: TimingKey,
        call: Call,
        watch: Stopwatch,
        *,
        units: int = 1,
        sqnr_db: float | None = None,
    ) -> None:
        self.key, self._call, self._watch = key, call, watch
        self._units, self._sqnr_db = units, sqnr_db
        self._count = watch.calls_in_burst(call)
        self.samples_ms: list[float] = []

    def take_sample(self) -> None:
        """After one call that is not counted: what ran before may have emptied its caches."""
        self._watch.burst_ms(self._call, 1)
        self.samples_ms.append(self._watch.burst_ms(self._call, self._count) / self._units)

    def timing(self) -> Timing:
        middle, spread = median_and_mad(self.samples_ms)
        return Timing(
            key=self.key,
            outcome="noisy" if spread > NOISY_SHARE * middle else "measured",
            median_ms=middle,
            mad_ms=spread,
            samples=len(self.samples_ms),
            sqnr_db=self._sqnr_db,
        )


def race(contestants: Sequence[Contestant], rounds: int) -> None:
    """Bursts of each in turn, so that drift of the clocks hits all alike."""
    for _ in range(rounds):
        for contestant in contestants:
            contestant.take_sample()


def as_graph(call: Call, device: torch.device) -> Call:
    """The same work as one CUDA graph: a small layer would be timed by its launch from Python,
    which inside a model overlaps with the work before it. On a CPU the call itself; likewise where
    the work cannot be captured. A graph knows only addresses: what it reads and writes lives as
    long as the answer, which holds `call`."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        return call

    def replay(_keep: Call = call) -> None:
        graph.replay()

    return replay
