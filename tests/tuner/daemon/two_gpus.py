"""Two GPUs that are not there, for real processes: faked at the driver's library alone.

What the driver shows of each is in a file that a test changes while daemons run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.stand_in_gpu import H100, make_stand_in

UUIDS = tuple(f"GPU-{number}0000000-0000-0000-0000-000000000000" for number in range(2))

CHANGING = """
import json

_STATE = Path({state!r})


def _now(name, handle):
    return json.loads(_STATE.read_text())[name][handle]


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetHandleByUUID(uuid):
    return int(uuid[4])


def nvmlDeviceGetUUID(handle):
    return f"GPU-{{handle}}0000000-0000-0000-0000-000000000000"


def nvmlDeviceGetMemoryInfo(handle, version=None):
    return SimpleNamespace(total={vram_bytes}, used=_now("used_bytes", handle))


def nvmlDeviceGetUtilizationRates(handle):
    return SimpleNamespace(gpu=_now("percent", handle), memory=0)


def nvmlDeviceGetComputeRunningProcesses(handle):
    return [SimpleNamespace(pid=pid) for pid in _now("pids", handle)]


nvmlDeviceGetCount = _says(2)
nvmlDeviceGetClockInfo = _says(1980)
nvmlDeviceGetPowerUsage = _says(400_000)
"""


@dataclass
class TwoGpus:
    """`folder` goes to PYTHONPATH."""

    folder: Path
    used_bytes: list[int] = field(default_factory=lambda: [0, 0])
    percent: list[int] = field(default_factory=lambda: [0, 0])
    pids: list[list[int]] = field(default_factory=lambda: [[], []])

    def __post_init__(self) -> None:
        make_stand_in(self.folder, H100)
        library = self.folder / "pynvml.py"
        changing = CHANGING.format(state=str(self._state), vram_bytes=H100.vram_bytes)
        library.write_text(library.read_text() + changing)
        self.show()

    def show(self) -> None:
        """From now on the driver says what the fields say."""
        told = {name: value for name, value in asdict(self).items() if name != "folder"}
        part = self._state.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.replace(self._state)

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"
