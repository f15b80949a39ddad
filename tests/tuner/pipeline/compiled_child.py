"""A process that compiles a little function, and leaves or is given compiled code.

`python -m tests.tuner.pipeline.compiled_child save|use FILE FOLDER`: "use" prints what it took.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tuner.pipeline.artifacts import compile_into, save_compiled_code, use_compiled_code


def compile_something() -> None:
    def something(value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(value) * 2 + 1

    value = torch.linspace(-1, 1, 64)
    with torch.no_grad():
        found = torch.compile(something)(value)
    torch.testing.assert_close(found, something(value))


def save(path: Path, folder: Path) -> None:
    compile_into(folder)
    compile_something()
    save_compiled_code(path, folder, torch.device("cpu"))


def use(path: Path, folder: Path) -> None:
    warmth = use_compiled_code(path.read_bytes(), folder)
    compile_something()
    print(warmth.counted().model_dump_json())  # noqa: T201 (a program's output)


if __name__ == "__main__":
    {"save": save, "use": use}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
