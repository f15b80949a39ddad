"""When a job may run: an idle GPU for a whole window, in the hours that were set."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.tuner.fake_nvml import H100, FakeNvml
from tests.tuner.study_bench import ManualClock
from tuner.daemon.config import Hours, IdleConfig
from tuner.daemon.manners import IdleGate, Manners, gpu_monitor
from tuner.nvml import NvmlUnavailable

GIB = 2**30
IDLE = IdleConfig(window=60.0, memory=float(GIB), utilization_percent=10)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Gpu:
    """What a GPU shows; `failure` is the driver's."""

    def __init__(self) -> None:
        self.memory_bytes, self.percent = 0, 0
        self.failure: NvmlUnavailable | None = None
        self.opened = 0

    def open(self) -> Gpu:
        self.opened += 1
        return self

    def used_bytes(self) -> int:
        if self.failure is not None:
            raise self.failure
        return self.memory_bytes

    def utilization_percent(self) -> int | None:
        return self.percent


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gate(gpu: Gpu, clock: ManualClock) -> IdleGate:
    return IdleGate(IDLE, gpu.open, clock.monotonic_s)


def test_it_opens_after_a_whole_window(gate: IdleGate, clock: ManualClock) -> None:
    assert "not yet for 60 s" in (gate.closed() or "")
    clock.elapsed_s += 59
    assert gate.closed() is not None
    clock.elapsed_s += 1
    assert gate.closed() is None


@pytest.mark.parametrize(
    ("memory_bytes", "percent", "said"),
    [
        (2 * GIB, 0, "others held more than 1.07 GB of the device within the last 60 s"),
        (0, 80, "others used more than 10% of the device within the last 60 s"),
    ],
)
def test_others_close_it_and_begin_the_window_anew(
    gate: IdleGate, gpu: Gpu, clock: ManualClock, memory_bytes: int, percent: int, said: str
) -> None:
    gate.closed()
    clock.elapsed_s += 60
    gpu.memory_bytes, gpu.percent = memory_bytes, percent
    assert gate.closed() == said
    gpu.memory_bytes = gpu.percent = 0
    assert gate.closed() == said
    clock.elapsed_s += 60
    assert gate.closed() is None


def test_others_who_come_and_go_are_told_of_in_the_same_words(
    gate: IdleGate, gpu: Gpu, clock: ManualClock
) -> None:
    """A look is a second: an app that serves a request now and then would fill the log."""
    reasons = set()
    for percent in (80, 0, 37, 0, 95, 0):
        gpu.percent = percent
        reasons.add(gate.closed())
        clock.elapsed_s += 1
    assert len(reasons) == 1


def test_a_driver_that_fails_closes_it_until_it_is_back(
    gate: IdleGate, gpu: Gpu, clock: ManualClock
) -> None:
    gate.closed()
    gpu.failure = NvmlUnavailable("the GPU has fallen off the bus", "reboot")
    clock.elapsed_s += 60
    assert "fallen off the bus" in (gate.closed() or "")
    gpu.failure = None
    gate.closed()
    assert gpu.opened == 2
    clock.elapsed_s += 60
    assert gate.closed() is None


def test_our_own_job_does_not_close_it(gate: IdleGate, gpu: Gpu, clock: ManualClock) -> None:
    manners = Manners((), gate, lambda: NOON)
    gate.closed()
    clock.elapsed_s += 60
    assert manners.closed(False) is None
    gpu.memory_bytes = 40 * GIB
    assert manners.closed(True) is None
    gpu.memory_bytes = 0
    assert manners.closed(False) is not None


def test_outside_of_the_hours_nothing_runs_and_nothing_goes_on() -> None:
    night = Manners((Hours.parse("22:00-07:00"),), None, lambda: NOON)
    assert night.closed(False) == night.closed(True) == "outside of the quiet hours"
    assert Manners((Hours.parse("11:00-13:00"),), None, lambda: NOON).closed(False) is None
    assert Manners((), None, lambda: NOON).closed(False) is None


def test_the_monitor_is_the_drivers() -> None:
    monitor = gpu_monitor(FakeNvml, H100.uuid)()
    assert monitor.used_bytes() >= 0
