"""Watching one worker from its start to its end: events, time-outs, memory caps."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass

from tuner import endings
from tuner.endings import Stop
from tuner.event_stream import BadEvent, EventStream, OtherProtocol
from tuner.protocol import Event, Hello, Progress, Result, TimingDone, WorkerFailure
from tuner.sampler import DEVICE_INTERVAL_S, Sample, Sampler
from tuner.spawn import Worker

READ_BYTES = 2**16
EXIT_GRACE_S = 20.0


@dataclass(frozen=True)
class Limits:
    """What a trial may use. `progress_s` is the longest silence between two events.

    `device_bytes` is enforced here on a CPU; on a GPU the worker caps its own allocator and the
    measured peak is judged afterwards. `host_bytes` caps the host memory of the worker's tree.
    """

    wall_s: float
    progress_s: float
    device_bytes: int | None = None
    host_bytes: int | None = None


class Watch:
    """Reads events and samples memory until the worker has ended or must be ended.

    Afterwards `hello`, `result`, `failure` and `stop` say what happened; a `result` stands, however
    the worker ended after it. `give_way` says why to end at once for somebody else's sake; then
    `gave_way` says so, and the trial says nothing about its plan.
    """

    def __init__(
        self,
        worker: Worker,
        limits: Limits,
        sampler: Sampler,
        clock: Callable[[], float],
        *,
        on_event: Callable[[Event], None] | None = None,
        on_sample: Callable[[Sample], None] | None = None,
        cap_device: bool,
        give_way: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._worker = worker
        self._limits = limits
        self._sampler = sampler
        self._clock = clock
        self._on_event = on_event
        self._on_sample = on_sample
        self._cap_device = cap_device
        self._give_way = give_way
        self._stream = EventStream()
        self._closed = False
        self._started_s = self._heard_s = clock()
        self.hello: Hello | None = None
        self.result: Result | None = None
        self.failure: WorkerFailure | None = None
        self.stop: Stop | None = None
        self.gave_way: str | None = None
        self.other_protocol: OtherProtocol | None = None

    @property
    def phase(self) -> str:
        return self._sampler.phase

    def until_end(self) -> None:
        """Returns when the worker has exited, or when it has to be killed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.events, selectors.EVENT_READ)
            while not self._is_over() and not has_exited(self._worker.process.pid):
                ready = selector.select(DEVICE_INTERVAL_S)
                self._take_sample()
                if ready:
                    self._read_events()
                if self._closed and selector.get_map():
                    selector.unregister(self._worker.events)
        # What the worker said last may still be in the pipe. A grandchild may hold its other end:
        # so read what is there, and wait for nothing.
        while self._understood and self._read_events():
            pass

    @property
    def _understood(self) -> bool:
        return self.stop is None and self.other_protocol is None and self.gave_way is None

    def _is_over(self) -> bool:
        """Checked between reads, so that a result already in the pipe wins over a time-out."""
        if not self._understood:
            return True
        now_s = self._clock()
        silence_s = now_s - self._heard_s
        if self.result is not None or self.failure is not None:
            return silence_s > EXIT_GRACE_S
        if now_s - self._started_s > self._limits.wall_s:
            self.stop = endings.wall_timeout(self._limits.wall_s, self.phase)
        elif silence_s > self._limits.progress_s:
            self.stop = endings.progress_timeout(self._limits.progress_s, self.phase)
        return self.stop is not None

    def _take_sample(self) -> None:
        sample = self._sampler.sample()
        if self._on_sample is not None:
            self._on_sample(sample)
        limits, peak = self._limits, self._sampler
        if self.result is not None or self.failure is not None:
            return
        self.gave_way = self._give_way()
        if self._cap_device and _over(peak.device_growth_peak_bytes, limits.device_bytes):
            self._stop_for_memory("device", peak.device_growth_peak_bytes, limits.device_bytes)
        elif _over(peak.host_peak_bytes, limits.host_bytes):
            self._stop_for_memory("host", peak.host_peak_bytes, limits.host_bytes)

    def _stop_for_memory(self, what: str, used_bytes: int, limit_bytes: int | None) -> None:
        self.stop = endings.over_memory(what, used_bytes, limit_bytes or 0, self.phase)

    def _read_events(self) -> bool:
        """One read; False if nothing was there."""
        try:
            data = os.read(self._worker.events, READ_BYTES)
        except BlockingIOError:
            return False
        self._closed = not data
        try:
            for event in self._stream.feed(data):
                self._receive(event)
        except BadEvent as error:
            self.stop = endings.broken_protocol(str(error))
        except OtherProtocol as error:
            self.other_protocol = error
        return bool(data)

    def _receive(self, event: Event) -> None:
        self._heard_s = self._clock()
        if isinstance(event, Hello):
            self.hello = event
            self._sampler.begin(event.host_baseline_bytes)
        elif isinstance(event, Progress):
            self._sampler.enter(event.phase)
        elif isinstance(event, WorkerFailure):
            self.failure = event
        elif not isinstance(event, TimingDone):
            self._sampler.sample()
            self.result = event
        if self._on_event is not None:
            self._on_event(event)


def has_exited(pid: int) -> bool:
    """Looks without reaping: until it is waited for, the pid cannot become somebody else's."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _over(used_bytes: int, limit_bytes: int | None) -> bool:
    return limit_bytes is not None and used_bytes > limit_bytes
