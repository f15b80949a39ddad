"""A trial on a GPU as the driver shows it: growth, peaks, clocks, others' load."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import DeviceError
from registry.record import PeakMemory
from tests.tuner.fake_nvml import H100, FakeNvml
from tests.tuner.fake_worker import CPU, GENEROUS, MIB, Bench, trial_job, trial_result
from tuner.detect import Detection
from tuner.device import CpuMonitor, GpuMonitor, open_gpu_monitor
from tuner.foreign import ARRIVAL_STEP_S, Arrivals, CpuWitness, GpuWitness, unexplained_growth
from tuner.nvml import NvmlUnavailable
from tuner.processes import ProcessTree
from tuner.protocol import TrialResult
from tuner.sampler import Sampler

GIB = 2**30
GPU: Detection = dataclasses.replace(CPU, device_index=0, device_uuid=H100.uuid)


class Clock:
    """Moves only when told; its `sleep` moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory_hog() -> Iterator[Callable[[int], int]]:
    """Starts processes that hold so many MiB; they are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mib: int) -> int:
        code = f"kept = b'x' * ({mib} * 2**20); print(1, flush=True); input()"
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child.pid

    yield start
    for child in started:
        child.kill()
        child.communicate()


def tree_of(pid: int) -> ProcessTree:
    return ProcessTree(pid, "test")


def test_gpu_monitor_asks_about_its_device() -> None:
    nvml = FakeNvml(used=[5], utilization=[37])
    monitor = GpuMonitor(nvml, H100.uuid)
    assert monitor.used_bytes() == 5
    assert monitor.utilization_percent() == 37
    assert monitor.sm_clock_mhz() == 1755
    assert monitor.power_w() == 431.6
    assert nvml.asked == {H100.uuid}


def test_cpu_monitor_counts_over_the_baseline(memory_hog: Callable[[int], int]) -> None:
    tree = tree_of(memory_hog(100))
    assert 100 * MIB < CpuMonitor(tree, 0).used_bytes() < 130 * MIB
    assert 50 * MIB < CpuMonitor(tree, 50 * MIB).used_bytes() < 80 * MIB
    assert CpuMonitor(tree, GIB).used_bytes() == 0


def test_no_monitor_on_a_cpu_and_an_error_without_a_driver() -> None:
    assert open_gpu_monitor(CPU, nvml=FakeNvml(dead=True)) is None
    assert open_gpu_monitor(GPU, nvml=FakeNvml()) is not None
    with pytest.raises(DeviceError, match="not loaded"):
        open_gpu_monitor(GPU, nvml=FakeNvml(dead=True))


def test_growth_is_over_the_level_at_the_start_and_by_phase(clock: Clock) -> None:
    nvml = FakeNvml(used=[1000, 1500, 4000, 2000, 3000, 500])
    sampler = Sampler(tree_of(os.getpid()), GpuMonitor(nvml, "x"), clock)
    assert sampler.sample().device_growth_bytes == 500
    sampler.enter("load")  # takes the 4000 for the phase before
    sampler.enter("load")
    sampler.sample()
    assert sampler.load_growth_peak_bytes == 3000
    sampler.enter("steps")  # takes the 3000 for the load
    assert sampler.sample().device_growth_bytes == 0
    assert sampler.device_growth_peak_bytes == 3000


def sample_for_a_second(sampler: Sampler, clock: Clock) -> None:
    for _ in range(8):
        sampler.sample()
        clock.sleep(0.125)


def test_clocks_count_only_while_steps_run(clock: Clock) -> None:
    sampler = Sampler(tree_of(os.getpid()), GpuMonitor(FakeNvml(), "x"), clock)
    sample_for_a_second(sampler, clock)
    assert sampler.clocks_mhz == sampler.powers_w == []
    sampler.enter("steps")
    sample_for_a_second(sampler, clock)
    assert (sampler.sm_clock_mhz, sampler.power_w) == (1755, 432)
    assert len(sampler.clocks_mhz) == 4


def test_nothing_before_the_hello_is_the_plans_on_a_cpu(
    clock: Clock, memory_hog: Callable[[int], int]
) -> None:
    sampler = Sampler(tree_of(memory_hog(50)), None, clock)
    sampler.sample()
    assert sampler.device_growth_peak_bytes == 0
    assert sampler.host_peak_bytes > 50 * MIB
    sampler.begin(20 * MIB)
    assert 30 * MIB < sampler.device_growth_peak_bytes < 60 * MIB


@pytest.mark.parametrize(
    ("used", "utilization", "words"),
    [
        ([0], [100], None),
        ([600 * MIB], [0], None),
        ([600 * MIB], [90, 90, 3], None),
        ([600 * MIB], [90], "others used 90% of the device before"),
        ([5 * GIB], [0], "others held 5.0 GiB of the device before"),
    ],
)
def test_others_before_the_start(
    clock: Clock, used: list[int], utilization: list[int], words: str | None
) -> None:
    nvml = FakeNvml(used=used, utilization=utilization)
    verdict = GpuWitness(GpuMonitor(nvml, "x"), clock=clock, sleep=clock.sleep).verdict()
    assert (words is None and verdict is None) or (words or "none") in (verdict or "")


@pytest.mark.parametrize(
    ("after", "words"),
    [([0], None), ([3 * GIB, 2 * GIB, 0], None), ([3 * GIB], "others took 3.0 GiB")],
)
def test_others_came_meanwhile(clock: Clock, after: list[int], words: str | None) -> None:
    nvml = FakeNvml(used=[0, *after])
    witness = GpuWitness(GpuMonitor(nvml, "x"), clock=clock, sleep=clock.sleep)
    verdict = witness.verdict()
    assert (words is None and verdict is None) or (words or "none") in (verdict or "")


def test_growth_that_the_trial_does_not_explain() -> None:
    assert unexplained_growth(20 * GIB, 19 * GIB) is None
    assert unexplained_growth(41 * GIB, 40 * GIB) is None
    assert unexplained_growth(5 * GIB, GIB) is not None


def stat_file(path: Path, *, busy_s: int, idle_s: int) -> Path:
    ticks = os.sysconf("SC_CLK_TCK")
    path.write_text(f"cpu  {busy_s * ticks} 0 0 {idle_s * ticks} 0 0 0 0 0 0\ncpu0 1 1\n")
    return path


@pytest.mark.parametrize(
    ("busy_s", "words"), [(1000, None), (1010, None), (1080, "other processes used 80%")]
)
def test_others_on_the_processor(tmp_path: Path, busy_s: int, words: str | None) -> None:
    witness = CpuWitness(stat_file(tmp_path / "stat", busy_s=1000, idle_s=1000))
    stat_file(tmp_path / "stat", busy_s=busy_s, idle_s=2100 - busy_s)
    verdict = witness.verdict()
    assert verdict is None if words is None else (verdict or "").startswith(words)


def run_on_gpu(bench: Bench, nvml: FakeNvml, memory: PeakMemory) -> TrialResult:
    body = f"""
    hello()
    progress("load")
    progress("steps")
    time.sleep(0.2)
    tell("variables", os.environ["CUDA_VISIBLE_DEVICES"])
    tell("device", job["device_index"])
    say(json.loads({trial_result(memory)!r}))
    """
    runner = bench.runner(body, detection=GPU, nvml=nvml)
    outcome = runner.run(trial_job(bench.folder / "compiled"), GENEROUS)
    assert isinstance(outcome.result, TrialResult)
    return outcome.result


def test_peak_is_the_larger_of_driver_and_allocator(tmp_path: Path) -> None:
    memory = PeakMemory(
        peak_vram_bytes=0,
        load_peak_vram_bytes=9 * GIB,
        reserved_peak_bytes=10 * GIB,
        outside_allocator_bytes=GIB // 2,
    )
    level = [GIB // 2, GIB // 2]
    bench = Bench(tmp_path)
    nvml = FakeNvml(used=[*level, GIB, 5 * GIB, *[9 * GIB] * 3, GIB // 2])
    measurement = run_on_gpu(bench, nvml, memory).measurement
    assert measurement.memory.peak_vram_bytes == 10 * GIB + GIB // 2
    assert measurement.memory.device_growth_peak_bytes == 9 * GIB - GIB // 2
    assert measurement.memory.load_peak_vram_bytes == 9 * GIB
    assert (measurement.sm_clock_mhz, measurement.power_w) == (1755, 432)
    assert measurement.contaminated is None
    assert bench.note("variables") == H100.uuid
    assert bench.note("device") == "0"


def test_others_growth_marks_the_measurement(tmp_path: Path) -> None:
    memory = PeakMemory(peak_vram_bytes=0, load_peak_vram_bytes=0, reserved_peak_bytes=GIB)
    nvml = FakeNvml(used=[0, 0, *[20 * GIB] * 3, 0])
    measurement = run_on_gpu(Bench(tmp_path), nvml, memory).measurement
    assert measurement.memory.peak_vram_bytes == 20 * GIB
    assert measurement.contaminated == (
        "the device's memory grew by 19.0 GiB more than the trial used"
    )


def test_driver_that_dies_during_a_trial(tmp_path: Path) -> None:
    class Dying(FakeNvml):
        def used_bytes(self, uuid: str) -> int:
            if len(self.asked) and len(self.used) == 1:
                raise NvmlUnavailable("the GPU has fallen off the bus", "Reset it.")
            return super().used_bytes(uuid)

    bench = Bench(tmp_path)
    runner = bench.runner("hello(); time.sleep(600)", detection=GPU, nvml=Dying(used=[0] * 5))
    with pytest.raises(DeviceError, match="fallen off the bus"):
        runner.run(trial_job(tmp_path), GENEROUS)


class Seen:
    """What the driver shows at each look."""

    def __init__(self, *looks: set[int]) -> None:
        self._looks = list(looks)

    def compute_pids(self) -> frozenset[int]:
        return frozenset(self._looks.pop(0) if len(self._looks) > 1 else self._looks[0])


OWN, STRANGER, RESIDENT = 10, 20, 30


def arrivals(*looks: set[int]) -> list[str | None]:
    """What is said at each look but the first, which is before the trial."""
    now_s = [0.0]
    watch = Arrivals(Seen(*looks), lambda: now_s[0])
    said = []
    for _ in looks[1:]:
        said.append(watch.look(lambda: (OWN,)))
        assert watch.look(lambda: (OWN,)) is None, "not due yet"
        now_s[0] += ARRIVAL_STEP_S
    return said


def test_a_stranger_that_stays_is_given_way_to() -> None:
    own, both = {RESIDENT, OWN}, {RESIDENT, OWN, STRANGER}
    said = arrivals({RESIDENT}, own, both, both)
    assert said == [None, None, f"process {STRANGER} came to use the device"]


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([set(), {OWN, STRANGER}, {OWN}, {OWN, STRANGER}], id="gone again"),
        pytest.param([{RESIDENT}, {RESIDENT, OWN}, {RESIDENT, OWN}], id="there before"),
        pytest.param([set(), {STRANGER}, {STRANGER}], id="numbers of another namespace"),
        pytest.param([set(), set(), set()], id="nobody"),
    ],
)
def test_nobody_is_given_way_to_who_may_be_ourselves(looks: list[set[int]]) -> None:
    assert set(arrivals(*looks)) == {None}
