"""The cap of a budget on a GPU made of values, and none on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from registry.errors import DeviceError
from tests.tuner.fake_nvml import GIB, H100, SLICES, FakeNvml
from tuner.pipeline.device import CAP_MARGIN_BYTES, Device, own_pss_bytes

CONTEXT = GIB // 2


@pytest.fixture
def capped(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A CUDA device of 80 GiB; the fractions it was capped at."""
    fractions: list[float] = []
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_properties": lambda _: SimpleNamespace(uuid=H100.uuid.removeprefix("GPU-")),
        "set_device": lambda _: None,
        "mem_get_info": lambda _: (0, 80 * GIB),
        "memory_reserved": lambda _: 2 * 2**20,
        "max_memory_allocated": lambda _: 11,
        "max_memory_reserved": lambda _: 13,
        "set_per_process_memory_fraction": lambda fraction, _: fractions.append(fraction),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    return fractions


def growing() -> FakeNvml:
    """Somebody else's GiB, then our context and the allocator's first 2 MiB."""
    return FakeNvml(used=[GIB, GIB + CONTEXT + 2 * 2**20])


def test_the_allocator_gets_the_budget_less_what_lies_outside_it(capped: list[float]) -> None:
    device = Device(0, 20 * GIB, nvml=growing())
    assert device.outside_allocator_bytes() == CONTEXT
    assert capped == [(20 * GIB - CONTEXT - CAP_MARGIN_BYTES) / (80 * GIB)]
    assert (device.allocated_peak_bytes(), device.reserved_peak_bytes()) == (11, 13)


def test_a_budget_of_more_than_the_card_caps_nothing(capped: list[float]) -> None:
    Device(0, 200 * GIB, nvml=growing())
    assert capped == [1.0]


def test_a_budget_smaller_than_the_context(capped: list[float]) -> None:
    with pytest.raises(DeviceError, match=r"a budget of 536870912 bytes leaves nothing"):
        Device(0, CONTEXT, nvml=growing())
    assert capped == []


def test_memory_is_read_of_the_device_that_torch_uses(
    capped: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(uuid=SLICES[1].uuid.removeprefix("MIG-"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    nvml = FakeNvml(devices=SLICES, used=[0])
    Device(0, 10 * GIB, nvml=nvml)
    assert nvml.asked == {SLICES[1].uuid}


def test_a_driver_that_died(capped: list[float]) -> None:
    with pytest.raises(DeviceError, match=r"kernel driver is not loaded") as raised:
        Device(0, GIB, nvml=FakeNvml(dead=True))
    assert "modprobe" in str(raised.value)


def test_no_cuda_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"torch sees no CUDA device"):
        Device(0, GIB)


def test_a_cpu_is_capped_by_the_parent() -> None:
    device = Device(None, 1)
    assert not device.is_cuda
    assert device.torch_device == torch.device("cpu")
    assert device.outside_allocator_bytes() == 0
    assert device.allocated_peak_bytes() == device.reserved_peak_bytes() == 0


def test_own_memory_is_that_of_a_process_with_torch() -> None:
    assert 50 * 2**20 < own_pss_bytes() < 20 * GIB
