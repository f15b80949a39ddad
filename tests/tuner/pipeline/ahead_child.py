"""A process with a little block, compiled ahead of time or given such code.

`python -m tests.tuner.pipeline.ahead_child save|use FILE FOLDER`: "use" prints as JSON what came of
each call of `CALLS`: how many functions were taken and missed, and the largest difference from
eager.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from registry.plan import Compilation
from tests.tuner.pipeline.ahead_block import CALLS, Block, called, inputs, same
from tuner.pipeline.ahead import Ahead
from tuner.pipeline.artifacts import compile_into, save_compiled_code, use_compiled_code
from tuner.pipeline.compile import compile_block

CPU = torch.device("cpu")
PLAN = Compilation(scope="regional")


def save(path: Path, folder: Path) -> None:
    compile_into(folder)
    ahead, block = Ahead(is_recording=True), Block()
    compile_block(block, PLAN, CPU)
    ahead.attach(block, PLAN)
    called(block, inputs())
    functions = ahead.compile_ahead()
    save_compiled_code(path, folder, CPU, functions)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": nullcontext,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another_device": lambda: torch.device("cpu"),
}


def use(path: Path, folder: Path) -> None:
    warmth = use_compiled_code(path.read_bytes(), folder)
    told = {make.__name__: outcome(warmth.ahead.functions, *make()) for make in CALLS}
    for name, setting in SETTINGS.items():
        with setting():
            told[name] = outcome(warmth.ahead.functions, *same())
    print(json.dumps(told))  # noqa: T201 (a program's output)


def outcome(functions: Mapping[str, bytes], block: Block, given: dict[str, Any]) -> list[Any]:
    later = given.pop("later", False)
    """What is not taken runs eagerly here, where an app would have it compiled."""
    ahead = Ahead(functions)
    block._compiled_call_impl = block._call_impl
    ahead.attach(block, PLAN)
    found = called(block, given)
    if later:
        block.scaled.factor = 5.0
        found = called(block, given)
    block._compiled_call_impl = None
    difference = (found - called(block, given)).abs().max().item()
    return [len(ahead.hits), len(ahead.misses), difference]


if __name__ == "__main__":
    {"save": save, "use": use}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
