"""A block's forward as one function of (module, *inputs), compiled and pickled by torch.

It has none of torch's guards, so that what it is given is for its caller to hold to (`ahead`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_unflatten

from tuner.pipeline.call_keys import CallKey, made_again


@dataclass(frozen=True)
class Example:
    """One call to compile for."""

    module: nn.Module
    key: CallKey
    options: Mapping[str, Any]


def _no_guards(guards: Iterable[Any]) -> list[bool]:
    return [False for _ in guards]


def compiled_code(example: Example) -> bytes:
    """The pickle of one function of (module, *inputs)."""
    from torch._dynamo.aot_compile import AOTCompiledFunction

    leaves = made_again(example.key.leaves, example.key.again)
    inputs = tree_unflatten(leaves, example.key.structure)
    options = {**example.options, "guard_filter_fn": _no_guards}
    with torch.no_grad():
        made = torch.compile(example.module.forward, fullgraph=True, dynamic=False, options=options)
        function = made.aot_compile(inputs)  # type: ignore[attr-defined]
    return bytes(AOTCompiledFunction.serialize(function).serialized_data)


def unpickled(data: bytes) -> Callable[..., Any]:
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from torch._dynamo.convert_frame import get_compile_id
    from torch._dynamo.utils import get_metrics_context
    from torch._guards import CompileContext, compile_context

    with compile_context(CompileContext(get_compile_id({}))), get_metrics_context():
        function = AOTCompiledFunction.deserialize(data)
    function.disable_guard_check()
    return function
