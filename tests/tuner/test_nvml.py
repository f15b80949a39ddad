"""The boundary to the driver, against a `pynvml` made of values and the real one without driver."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tuner.fake_nvml import GIB, FakePynvml, error
from tuner.nvml import NvmlLibrary, NvmlUnavailable, open_nvml


def test_a_whole_gpu() -> None:
    (gpu,) = NvmlLibrary(FakePynvml()).gpus()
    assert (gpu.index, gpu.uuid, gpu.name) == ("0", "GPU-1111", "NVIDIA H100 80GB HBM3")
    assert gpu.compute_capability == (9, 0)
    assert gpu.vram_bytes == 80 * GIB
    assert gpu.multiprocessors == 132
    assert gpu.sm_clock_mhz == 1980
    assert gpu.memory_bandwidth_bytes_per_s == 3_352_320_000_000
    assert gpu.power_limit_w == 700
    assert gpu.link_bandwidth_class == "pcie5x16"
    assert gpu.mig_profile is None


def test_slices_stand_in_place_of_their_gpu() -> None:
    first, second = NvmlLibrary(FakePynvml(mig=("1g.10gb", "2g.20gb"))).gpus()
    assert (first.index, first.uuid, first.mig_profile) == ("0:0", "MIG-0aaa", "1g.10gb")
    assert (second.index, second.uuid, second.mig_profile) == ("0:1", "MIG-1aaa", "2g.20gb")
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert first.vram_bytes == 10 * GIB
    assert first.multiprocessors == 16
    assert first.memory_bandwidth_bytes_per_s == 3_352_320_000_000 // 8


def test_what_a_gpu_does_not_know_is_none() -> None:
    unknown = error("NVMLError_NotSupported")
    (gpu,) = NvmlLibrary(
        FakePynvml(
            nvmlDeviceGetMigMode=unknown,
            nvmlDeviceGetNumGpuCores=unknown,
            nvmlDeviceGetMemoryBusWidth=unknown,
            nvmlDeviceGetPowerManagementLimit=unknown,
            nvmlDeviceGetMaxPcieLinkWidth=unknown,
        )
    ).gpus()
    assert gpu.multiprocessors is None
    assert gpu.memory_bandwidth_bytes_per_s is None
    assert gpu.power_limit_w is None
    assert gpu.link_bandwidth_class == "unknown"


def test_used_memory_leaves_the_drivers_reserve_out_where_it_can() -> None:
    assert NvmlLibrary(FakePynvml()).used_bytes("GPU-1111") == 5
    old_driver = FakePynvml(memory_v2=error("NVMLError_FunctionNotFound"))
    assert NvmlLibrary(old_driver).used_bytes("GPU-1111") == GIB


@pytest.mark.parametrize("uuid", ["GPU-1111", "MIG-0aaa"])
def test_what_changes_while_it_runs(uuid: str) -> None:
    library = NvmlLibrary(FakePynvml(mig=("1g.10gb",)))
    assert library.sm_clock_mhz(uuid) == 1755
    assert library.power_w(uuid) == pytest.approx(431.6)
    assert library.utilization_percent(uuid) == 37
    assert library.driver_version() == "580.159.04"


@pytest.mark.parametrize(
    ("code", "words", "absent"),
    [
        ("NVMLError_LibraryNotFound", "libnvidia-ml.so.1 is not installed", True),
        ("NVMLError_DriverNotLoaded", "kernel driver is not loaded", False),
        ("NVMLError_LibRmVersionMismatch", "different versions", False),
        ("NVMLError_NoPermission", "may not talk", False),
        ("NVMLError_Unknown", "does not answer: NVMLError_Unknown", False),
    ],
)
def test_a_driver_that_cannot_answer(code: str, words: str, absent: bool) -> None:
    with pytest.raises(NvmlUnavailable) as caught:
        NvmlLibrary(FakePynvml(nvmlInit=error(code)))
    assert words in caught.value.message
    assert caught.value.hint
    assert caught.value.absent is absent


def test_processes_that_compute_where_the_driver_tells() -> None:
    shown = [SimpleNamespace(pid=7, usedGpuMemory=None), SimpleNamespace(pid=9, usedGpuMemory=1)]
    telling = FakePynvml(nvmlDeviceGetComputeRunningProcesses=shown)
    assert NvmlLibrary(telling).compute_pids("GPU-1111") == {7, 9}
    silent = FakePynvml(nvmlDeviceGetComputeRunningProcesses=error("NVMLError_NotSupported"))
    assert NvmlLibrary(silent).compute_pids("GPU-1111") == frozenset()


def test_a_gpu_that_dies_while_it_is_watched() -> None:
    library = NvmlLibrary(FakePynvml(memory_v2=error("NVMLError_GpuIsLost")))
    with pytest.raises(NvmlUnavailable, match="fallen off the bus"):
        library.used_bytes("GPU-1111")


def test_nvidia_ml_py_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match="nvidia-ml-py is not installed"):
        open_nvml()


def test_the_real_library_without_a_driver() -> None:
    assert importlib.util.find_spec("pynvml") is not None
    if any(Path("/dev").glob("nvidia[0-9]*")):
        assert open_nvml().gpus()
    else:
        with pytest.raises(NvmlUnavailable):
            open_nvml()
