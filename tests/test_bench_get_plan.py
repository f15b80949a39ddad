"""The benchmark's GPU that is not there is taken for one, and torch stays out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.stand_in_gpu import H100, RTX_3060, Card, make_stand_in

LOOK = """
import sys
from tuner.detect import detect
found = detect()
hardware = found.environment.hardware
print(hardware.name, hardware.vram_bytes, *hardware.compute_capability)
print(hardware.link_bandwidth_class, hardware.memory_bandwidth_bytes_per_s // 10**9)
print(found.environment.runtime.cuda, found.environment.runtime.triton, found.problems)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("card", "link", "bandwidth"),
    [(H100, "pcie5x16", 3352), (RTX_3060, "pcie4x16", 360)],
    ids=["h100", "rtx-3060"],
)
def test_a_stand_in_is_detected(tmp_path: Path, card: Card, link: str, bandwidth: int) -> None:
    make_stand_in(tmp_path, card)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    environ = {**os.environ, "PYTHONPATH": paths}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    seen = subprocess.run(
        [sys.executable, "-c", LOOK], env=environ, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    major, minor = card.capability
    assert seen.splitlines() == [
        f"{card.name} {card.vram_bytes} {major} {minor}",
        f"{link} {bandwidth}",
        "13.0 3.6.0 ()",
    ]
