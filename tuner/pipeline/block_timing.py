"""Times one block under each choice of scheme, attention backend and compilation."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from registry.errors import InvalidInput
from registry.plan import Compilation
from tuner.pipeline.attention import set_attention
from tuner.pipeline.block_inputs import Arguments
from tuner.pipeline.compile import compile_block
from tuner.pipeline.quantize import quantize_layer
from tuner.pipeline.stopwatch import Call, Contestant, Stopwatch
from tuner.protocol import TimingTarget

Module = TypeVar("Module", bound=nn.Module)

AS_PLANS_DO = Compilation(scope="regional", fullgraph=True)


def block_contestant(
    block: nn.Module, arguments: Arguments, target: TimingTarget, watch: Stopwatch
) -> Contestant:
    """`block` itself is left as it is; what the choice does not change is shared with it.

    Raises InvalidPlan where torchao refuses a layer, and whatever the compiler or the attention
    kernels raise.
    """
    variant = sharing_copy(block)
    for name, scheme in target.layers.items():
        layer = variant.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise InvalidInput(f"{name!r} of {target.path!r} is not a linear layer")
        quantize_layer(name, layer, scheme)
    if target.key.attention_backend != "default":
        set_attention(variant, target.key.attention_backend)
    if target.key.context == "compiled":
        compile_block(variant, AS_PLANS_DO, watch.device)
    return Contestant(target.key, _call(variant, arguments), watch)


def sharing_copy(module: Module) -> Module:
    """A module of its own with the same tensors: quantizing a layer replaces its weight."""
    held = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in held})


def _call(block: nn.Module, arguments: Arguments) -> Call:
    args, kwargs = arguments

    def call() -> object:
        with torch.no_grad():
            return block(*args, **kwargs)

    return call
