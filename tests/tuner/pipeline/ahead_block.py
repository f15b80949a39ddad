"""A little block, and calls of it that differ in one thing each from the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_


class Scaled(nn.Module):
    """Holds a number that tracing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.factor


class Block(nn.Module):
    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(32, 32, dtype=dtype)
        self.scaled = Scaled()
        quantize_(self.linear, Int8WeightOnlyConfig(version=2, set_inductor_config=False))

    def forward(self, value: torch.Tensor, *, offset: torch.Tensor, times: int = 1) -> torch.Tensor:
        found: torch.Tensor = self.scaled(torch.nn.functional.silu(self.linear(value))) + offset
        return found * times


def inputs(rows: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    value = torch.linspace(-1, 1, rows * 32, dtype=dtype).view(rows, 32)
    return {"value": value, "offset": value[:1].clone()}


def called(block: nn.Module, given: dict[str, Any]) -> torch.Tensor:
    value, others = given["value"], {name: x for name, x in given.items() if name != "value"}
    with torch.no_grad():
        found: torch.Tensor = block(value, **others)
    return found


def same() -> tuple[Block, dict[str, Any]]:
    return Block(), inputs()


def other_weights() -> tuple[Block, dict[str, Any]]:
    return Block(seed=1), inputs()


def other_shape() -> tuple[Block, dict[str, Any]]:
    return Block(), inputs(rows=5)


def other_stride() -> tuple[Block, dict[str, Any]]:
    given = inputs()
    return Block(), {**given, "value": given["value"].T.contiguous().T}


def other_dtype() -> tuple[Block, dict[str, Any]]:
    return Block(dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)


def other_scheme() -> tuple[Block, dict[str, Any]]:
    block = Block()
    block.linear = nn.Linear(32, 32)
    return block, inputs()


def other_number() -> tuple[Block, dict[str, Any]]:
    block = Block()
    block.scaled.factor = 3.0
    return block, inputs()


def other_argument() -> tuple[Block, dict[str, Any]]:
    return Block(), {**inputs(), "times": 2}


def one_tensor_twice() -> tuple[Block, dict[str, Any]]:
    value = inputs()["value"]
    return Block(), {"value": value, "offset": value}


def shared_memory() -> tuple[Block, dict[str, Any]]:
    value = inputs()["value"]
    return Block(), {"value": value, "offset": value[:1]}


def one_more(_module: nn.Module, _given: Any, found: torch.Tensor) -> torch.Tensor:
    return found + 1


def a_hook() -> tuple[Block, dict[str, Any]]:
    block = Block()
    block.register_forward_hook(one_more)
    return block, inputs()


def a_hook_inside() -> tuple[Block, dict[str, Any]]:
    block = Block()
    block.linear.register_forward_hook(one_more)
    return block, inputs()


def changed_later() -> tuple[Block, dict[str, Any]]:
    """As an app does that loads an adapter: between two calls of one block."""
    block, given = Block(), inputs()
    return block, {**given, "later": True}


CALLS: tuple[Callable[[], tuple[Block, dict[str, Any]]], ...] = (
    same,
    other_weights,
    other_shape,
    other_stride,
    other_dtype,
    other_scheme,
    other_number,
    other_argument,
    one_tensor_twice,
    shared_memory,
    a_hook,
    a_hook_inside,
    changed_later,
)
