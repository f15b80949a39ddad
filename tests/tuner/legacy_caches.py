"""Pickles as torchao's autoquant left them, made by a process that has classes of those names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MAKER = """
import json, pickle, sys, types
import torch
for name in ("torchao", "torchao.quantization", "torchao.quantization.autoquant", "own"):
    sys.modules[name] = types.ModuleType(name)

def a_class(path):
    module, _, name = path.rpartition(".")
    found = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, found)
    return found

folder, entries = sys.argv[1], json.loads(sys.argv[2])
cache = {}
for path, rows, ins, outs, bias, dtype, value in entries:
    known = getattr(sys.modules[path.rpartition(".")[0]], path.rpartition(".")[2], None)
    sizes = torch.randn(rows, 1).shape[:1] + (ins,), (outs, ins), (outs,) if bias else None
    sizes = [None if size is None else torch.Size(size) for size in sizes]
    key = (known or a_class(path), *sizes, getattr(torch, dtype))
    cache[key] = None if value is None else float(value)
for protocol in range(2, 6):
    with open(f"{folder}/protocol-{protocol}.pkl", "wb") as file:
        pickle.dump(cache, file, protocol=protocol)
"""

AUTOQUANT = "torchao.quantization.autoquant."
Entry = tuple[str, int, int, int, bool, str, float | str | None]
CLASSES = (
    "AQDefaultLinearWeight",
    "AQInt8DynamicallyQuantizedLinearWeight",
    "AQInt8WeightOnlyQuantizedLinearWeight",
    "AQInt8WeightOnlyQuantizedLinearWeight2",
    "AQInt4G64WeightOnlyQuantizedLinearWeight",
)
LAYERS: list[tuple[int, int, list[float | str | None]]] = [
    (4096, 12288, [2.25, 1.5, 2.5, "inf", 3.5]),
    (512, 9216, [0.25, 0.125, None, None, 0.5]),
]
ENTRIES: list[Entry] = [
    (f"{AUTOQUANT}{name}", rows, 3072, outs, True, "bfloat16", value)
    for rows, outs, times in LAYERS
    for name, value in zip(CLASSES, times, strict=True)
]
"""Two layers as autoquant meets them: int8 weight-only has two kernels, the second fails at many
rows, and int4 is no scheme of this program."""


def make(folder: Path, entries: list[Entry] | None = None) -> dict[int, bytes]:
    """The pickled cache at each protocol. The process does not import torchao: it stands in."""
    given: list[Any] = [list(entry) for entry in (ENTRIES if entries is None else entries)]
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", MAKER, str(folder), json.dumps(given)]
    subprocess.run(command, check=True, capture_output=True)
    return {number: (folder / f"protocol-{number}.pkl").read_bytes() for number in range(2, 6)}
