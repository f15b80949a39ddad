"""Which dtype each tensor of a module takes: the plan's, or float32 where its class keeps that."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def keep_float32(module: nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters that the module's class keeps in float32 that dtype, as
    `from_pretrained` does (Wan's time embedding, T5's `wo` in float16). Meta tensors too."""
    kept = _Kept(module, dtype)
    for name, parameter in module.named_parameters():
        if kept(name):
            parameter.data = parameter.data.to(torch.float32)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """A module in memory as `from_pretrained` in `dtype` would have made it: parameters and
    persistent buffers cast; non-persistent ones (RoPE tables) keep their precision."""
    kept = _Kept(module, dtype)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept(name) else dtype)


class _Kept:
    """Whether a parameter of this name stays in float32. diffusers compares whole parts of a name
    in any half precision; transformers searches for patterns, some in float16 only."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        names = _names(module, "_keep_in_fp32_modules")
        self._patterns: list[str] = []
        self._parts: frozenset[str] = frozenset()
        if not isinstance(module, PreTrainedModel):
            self._parts = frozenset(names)
            return
        chosen = [*names] if dtype == torch.float16 else []
        if dtype in (torch.float16, torch.bfloat16):
            chosen += _names(module, "_keep_in_fp32_modules_strict")
        self._patterns = [name.replace("*", ".*") for name in chosen]

    def __call__(self, name: str) -> bool:
        if not self._parts.isdisjoint(name.split(".")):
            return True
        return any(re.search(pattern, name) for pattern in self._patterns)


def _names(module: nn.Module, attribute: str) -> Iterable[str]:
    found: Iterable[str] = getattr(module, attribute, None) or ()
    return found
