"""A folder for PYTHONPATH that gives `tuner` a GPU which is not there, for timing its answers.

The driver's functions answer with a card's values; the real `pynvml` is imported beneath them, so
that its import costs what it always does. torch is a version file that says CUDA and a package
that cannot be imported, Triton a name among the installed packages. Nothing made so is a
measurement of that card, and a driver that has to look at real hardware answers later than this
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 2**30

PYNVML = """
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

_paths = [item for item in sys.path if Path(item or ".").resolve() != Path(__file__).parent]
_spec = importlib.machinery.PathFinder.find_spec("pynvml", _paths)
_real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_real)
globals().update({name: value for name, value in vars(_real).items() if name[:2] != "__"})


def _says(value):
    return lambda *_args, **_kwargs: value


def nvmlDeviceGetMaxClockInfo(_handle, clock):
    return CLOCKS[clock]


nvmlInit = _says(None)
nvmlSystemGetDriverVersion = _says("580.65.06")
nvmlDeviceGetCount = _says(1)
nvmlDeviceGetHandleByIndex = nvmlDeviceGetHandleByUUID = _says("gpu")
nvmlDeviceGetMigMode = _says([0, 0])
nvmlDeviceGetUUID = _says("GPU-00000000-0000-0000-0000-000000000000")
"""

TORCH_VERSION = "__version__ = '2.11.0+cu130'\ncuda = '13.0'\nhip = None\n"
TORCH = "raise ImportError('there is no torch here, only its version')\n"
TRITON = "Metadata-Version: 2.1\nName: triton\nVersion: 3.6.0\n"


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet. `bus_bits` and `memory_mhz` give the bandwidth as NVML does."""

    name: str
    capability: tuple[int, int]
    vram_bytes: int
    cores: int
    sm_mhz: int
    memory_mhz: int
    bus_bits: int
    power_w: int
    link: tuple[int, int]


RTX_4060 = Card("NVIDIA GeForce RTX 4060", (8, 9), 8 * GIB, 3072, 3105, 8501, 128, 115, (4, 8))
RTX_3060 = Card("NVIDIA GeForce RTX 3060", (8, 6), 12 * GIB, 3584, 2100, 7501, 192, 170, (4, 16))
RTX_4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, 16384, 3105, 10501, 384, 450, (4, 16))
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, 16896, 1980, 2619, 5120, 700, (5, 16))


def make_stand_in(folder: Path, card: Card) -> None:
    """Fill a folder, made if need be."""
    files = {
        "pynvml.py": PYNVML + _answers(card),
        "torch/__init__.py": TORCH,
        "torch/version.py": TORCH_VERSION,
        "triton-3.6.0.dist-info/METADATA": TRITON,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _answers(card: Card) -> str:
    memory = f"SimpleNamespace(total={card.vram_bytes}, used=0)"
    answers = {
        "nvmlDeviceGetName": repr(card.name),
        "nvmlDeviceGetCudaComputeCapability": repr(list(card.capability)),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetNumGpuCores": repr(card.cores),
        "nvmlDeviceGetMemoryBusWidth": repr(card.bus_bits),
        "nvmlDeviceGetPowerManagementLimit": repr(card.power_w * 1000),
        "nvmlDeviceGetMaxPcieLinkGeneration": repr(card.link[0]),
        "nvmlDeviceGetMaxPcieLinkWidth": repr(card.link[1]),
    }
    clocks = f"CLOCKS = {{NVML_CLOCK_SM: {card.sm_mhz}, NVML_CLOCK_MEM: {card.memory_mhz}}}\n"
    return clocks + "".join(f"{name} = _says({value})\n" for name, value in answers.items())
