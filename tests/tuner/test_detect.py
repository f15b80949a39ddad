"""Which device is taken, and how each thing that can be wrong with it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from registry.errors import DeviceError, InvalidInput
from tests.tuner.fake_nvml import H100, RTX, SECOND, SLICES, FakeNvml
from tuner import host, installed
from tuner.config import Settings
from tuner.detect import Detection, detect, detect_environment
from tuner.installed import TorchBuild
from tuner.nvml import Gpu, NvmlUnavailable

CUDA_TORCH = TorchBuild("2.11.0+cu130", "13.0", None, "abc")
CPU_TORCH = TorchBuild("2.13.0+cpu", None, None, "abc")


def settings(visible: str | None = None) -> Settings:
    nowhere = Path("/nowhere")
    return Settings("r", nowhere, nowhere, nowhere, visible_devices=visible)


@pytest.fixture(autouse=True)
def cuda_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build of torch is installed and the machine has an NVIDIA card."""
    monkeypatch.setattr(installed, "torch_build", lambda: CUDA_TORCH)
    monkeypatch.setattr(host, "nvidia_gpu_on_bus", lambda: True)
    monkeypatch.setattr(host, "in_container", lambda: False)


def found(
    gpu: str | None = None, *devices: Gpu, visible: str | None = None, **more: Any
) -> Detection:
    nvml = FakeNvml(devices or (H100,), **more)
    return detect(gpu, nvml=nvml, settings=settings(visible))


def without_driver() -> FakeNvml:
    raise NvmlUnavailable("the NVIDIA driver's library is not installed", "Do.", absent=True)


def test_one_gpu() -> None:
    detection = found(None, used=[123])
    hardware, runtime = detection.environment.hardware, detection.environment.runtime
    assert detection.device_index == 0
    assert detection.device_uuid == detection.device_key == H100.uuid
    assert detection.foreign_bytes == 123
    assert detection.problems == detection.notes == ()
    assert (hardware.device, hardware.name) == ("cuda", H100.name)
    assert hardware.compute_capability == (9, 0)
    assert hardware.vram_bytes == H100.vram_bytes
    assert hardware.link_bandwidth_class == "pcie5x16"
    assert (runtime.driver, runtime.cuda, runtime.torch) == ("580.159.04", "13.0", "2.11.0+cu130")
    assert runtime.compiler is None
    assert runtime.cpu_isa is None


def test_the_uuid_is_no_part_of_the_hardware() -> None:
    first, second = found("0", H100, SECOND), found("1", H100, SECOND)
    assert first.device_uuid != second.device_uuid
    assert first.environment.hardware.digest == second.environment.hardware.digest


def test_the_first_of_several_is_taken_with_a_note() -> None:
    detection = found(None, H100, SECOND)
    assert detection.device_uuid == H100.uuid
    assert detection.problems == ()
    (note,) = detection.notes
    assert "using GPU 0" in note
    assert SECOND.uuid in note


@pytest.mark.parametrize(
    ("gpu", "uuid"),
    [
        ("1", SECOND.uuid),
        (SECOND.uuid, SECOND.uuid),
        ("gpu-2222", SECOND.uuid),
        ("4090", RTX.uuid),
        ("geforce rtx", RTX.uuid),
    ],
)
def test_a_gpu_by_index_uuid_or_name(gpu: str, uuid: str) -> None:
    detection = found(gpu, H100, SECOND, RTX)
    assert detection.device_uuid == uuid
    assert detection.notes == ()


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("7", "'7' is no device of this machine; there are: 0 (NVIDIA H100"),
        ("A100", "'A100' is no device"),
        ("GPU-9999", "'GPU-9999' is no device"),
        ("H100", "'H100' fits several devices: 0 (NVIDIA H100"),
    ],
)
def test_a_gpu_that_is_not_there_or_not_one(gpu: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        found(gpu, H100, SECOND, RTX)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_mig_slice_is_a_device() -> None:
    detection = found("MIG-1aaa", *SLICES, RTX)
    hardware = detection.environment.hardware
    assert detection.device_uuid == SLICES[1].uuid
    assert detection.device_index == 0
    assert (hardware.mig_profile, hardware.vram_bytes) == ("1g.10gb", SLICES[1].vram_bytes)
    assert found("0:1", *SLICES, RTX).device_uuid == SLICES[1].uuid
    assert found(None, *SLICES).device_uuid == SLICES[0].uuid
    with pytest.raises(InvalidInput, match="fits several"):
        found("0", *SLICES, RTX)


@pytest.mark.parametrize(
    ("visible", "uuid"),
    [
        ("1", SECOND.uuid),
        ("2,0", RTX.uuid),
        ("GPU-33333333", RTX.uuid),
        ("1,99,0", SECOND.uuid),
    ],
)
def test_cuda_visible_devices_is_respected(visible: str, uuid: str) -> None:
    assert found(None, H100, SECOND, RTX, visible=visible).device_uuid == uuid


@pytest.mark.parametrize(
    ("visible", "words"),
    [("", "CUDA_VISIBLE_DEVICES is empty"), ("-1", "'-1'"), ("GPU-9", "names 'GPU-9'")],
)
def test_every_gpu_hidden_leaves_the_cpu_and_says_why(visible: str, words: str) -> None:
    detection = found(None, H100, visible=visible)
    assert detection.environment.hardware.device == "cpu"
    assert words in detection.problems[0]


def test_a_hidden_gpu_asked_for_by_name() -> None:
    with pytest.raises(InvalidInput, match="hidden by CUDA_VISIBLE_DEVICES"):
        found("0", H100, SECOND, visible="1")


@pytest.mark.parametrize("gpu", ["cpu", "CPU"])
def test_the_cpu_forced(gpu: str) -> None:
    detection = found(gpu)
    hardware = detection.environment.hardware
    assert hardware.device == "cpu"
    assert (detection.device_index, detection.device_uuid, detection.foreign_bytes) == (
        None,
        None,
        0,
    )
    assert detection.device_key == "cpu"
    assert detection.problems == ()
    assert hardware.vram_bytes == hardware.host_ram_bytes > 0
    assert hardware.name == hardware.cpu_model
    assert hardware.link_bandwidth_class == "none"
    assert detection.environment.runtime.cpu_isa
    assert detection.environment.runtime.driver is None


def test_a_cpu_build_of_torch_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "torch_build", lambda: CPU_TORCH)
    detection = found()
    assert detection.environment.hardware.device == "cpu"
    assert H100.name in detection.problems[0]
    assert "torch 2.13.0+cpu is a CPU build" in detection.problems[0]
    with pytest.raises(DeviceError, match="CPU build"):
        found("0")


def test_another_interpreters_torch_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "torch_build", lambda: CPU_TORCH)
    detection = detect(nvml=FakeNvml(), settings=settings(), own_torch=False)
    assert detection.device_uuid == H100.uuid


def test_without_torch_the_gpu_is_still_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install, which only fetches plans, has no torch."""
    monkeypatch.setattr(installed, "torch_build", lambda: None)
    detection = found()
    assert detection.device_uuid == H100.uuid
    assert detection.environment.runtime.torch is None


def test_a_machine_without_a_gpu_is_in_good_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "nvidia_gpu_on_bus", lambda: False)
    detection = detect(nvml=without_driver, settings=settings())
    assert detection.environment.hardware.device == "cpu"
    assert detection.problems == ()


def test_a_card_without_a_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "in_container", lambda: True)
    detection = detect(nvml=without_driver, settings=settings())
    assert detection.environment.hardware.device == "cpu"
    (problem,) = detection.problems
    assert "library is not installed" in problem
    assert "--gpus all" in problem


def test_a_dead_driver_is_told() -> None:
    detection = found(dead=True)
    assert detection.environment.hardware.device == "cpu"
    assert "kernel driver is not loaded" in detection.problems[0]
    assert "modprobe" in detection.problems[0]
    with pytest.raises(DeviceError, match="not loaded") as caught:
        found("0", dead=True)
    assert caught.value.hint == "sudo modprobe nvidia"


def test_a_driver_that_shows_no_gpu() -> None:
    detection = detect(nvml=FakeNvml(()), settings=settings())
    assert detection.problems == ("the NVIDIA driver runs but shows no GPU",)


def test_a_worker_describes_what_it_sees() -> None:
    nvml = FakeNvml((H100, SECOND, RTX))
    seen = detect_environment(0, nvml=nvml, settings=settings(RTX.uuid))
    assert seen == detect(RTX.uuid, nvml=nvml, settings=settings()).environment
    cpu = detect_environment(None, nvml=without_driver, settings=settings())
    assert cpu == detect("cpu", settings=settings()).environment


def test_a_worker_without_its_device() -> None:
    with pytest.raises(DeviceError, match="CUDA device 1 is not there: 1 visible"):
        detect_environment(1, nvml=FakeNvml(), settings=settings())
    with pytest.raises(DeviceError, match="not loaded"):
        detect_environment(0, nvml=FakeNvml(dead=True), settings=settings())


def test_detection_imports_no_torch() -> None:
    code = "import sys, tuner.detect; tuner.detect.detect(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
