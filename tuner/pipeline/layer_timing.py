"""Times one linear layer as it runs inside compiled code, and says how far quantizing moves it.

Alone, a layer would pay in full for quantizing its input, which a compiled block does in the kernel
before it. So it is compiled with the neighbours it has in a transformer: a scaled norm before it, a
gate and a residual after it. Their time is part of every timing: timings of one layer are for
comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch import nn
from torch.nn.functional import layer_norm

from registry.errors import InvalidInput
from registry.plan import LayerScheme
from registry.timing import TimingKey
from tuner.pipeline.block_inputs import Arguments
from tuner.pipeline.block_timing import sharing_copy
from tuner.pipeline.quantize import quantize_layer
from tuner.pipeline.scoring import sqnr_db
from tuner.pipeline.stopwatch import Call, Contestant, Stopwatch, as_graph
from tuner.protocol import TimingTarget

CACHE_BYTES = 128 * 2**20
"""More than the level-2 cache of any GPU: weights that a model reads once a step do not lie there,
so a layer is timed with as many copies of its weights as that takes."""
MAX_COPIES = 8
SCORED_ROWS = 2048


class Activations:
    """What each linear layer of a block is given in one call of it, as (rows, features)."""

    def __init__(self, block: nn.Module, arguments: Arguments) -> None:
        self.layers = {
            name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)
        }
        self.inputs: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(self._noter(name))
            for name, layer in self.layers.items()
        ]
        args, kwargs = arguments
        try:
            with torch.no_grad():
                block(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _noter(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def note(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = args[0].detach().reshape(-1, args[0].shape[-1])
            self.inputs.setdefault(name, rows)

        return note

    def alike(self, key: TimingKey) -> list[str]:
        """Layers of the key's shape, in the order they are called. Raises InvalidInput for none."""
        wanted = (key.shape, key.bias)
        if found := [name for name in self.inputs if self._facts(name) == wanted]:
            return found
        raise InvalidInput(f"the block has no linear layer of shape {key.shape}")

    def _facts(self, name: str) -> tuple[tuple[int, ...], bool]:
        layer = self.layers[name]
        shape = (self.inputs[name].shape[0], layer.in_features, layer.out_features)
        return shape, layer.bias is not None


class _Neighbourhood(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, rows: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        normed = layer_norm(rows, rows.shape[-1:]) * scale
        mixed: torch.Tensor = residual + gate * self.layer(normed)
        return mixed


def layer_contestant(
    activations: Activations, target: TimingTarget, watch: Stopwatch
) -> Contestant:
    """Of the target's shape, whichever layers of the block have it: the first is timed, and the
    worst of them is the score. Raises as `block_contestant` does."""
    names = activations.alike(target.key)
    scheme = target.key.scheme
    if scheme == "mixed":
        raise InvalidInput("a single layer has one scheme, not a mixed one")
    layer, rows = activations.layers[names[0]], activations.inputs[names[0]]
    score = None
    if scheme != "none":
        score = min(_score(activations.layers[n], activations.inputs[n], scheme) for n in names)
    copies = [_quantized(layer, scheme, own=True) for _ in range(_copies(layer, scheme, rows))]
    call = _one_of_each(copies, rows)
    return Contestant(target.key, call, watch, units=len(copies), sqnr_db=score)


def _copies(layer: nn.Linear, scheme: LayerScheme, rows: torch.Tensor) -> int:
    if not rows.is_cuda:
        return 1
    size = layer.weight.numel() * (layer.weight.element_size() if scheme == "none" else 1)
    return max(1, min(MAX_COPIES, ceil(CACHE_BYTES / size)))


def _quantized(layer: nn.Linear, scheme: LayerScheme, *, own: bool = False) -> nn.Linear:
    made = sharing_copy(layer)
    if scheme != "none":
        quantize_layer("linear", made, scheme)
    elif own:
        made.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    return made


def _score(layer: nn.Linear, rows: torch.Tensor, scheme: LayerScheme) -> float:
    some = rows[:SCORED_ROWS]
    with torch.no_grad():
        return sqnr_db(layer(some), _quantized(layer, scheme)(some))


def _one_of_each(copies: Sequence[nn.Linear], rows: torch.Tensor) -> Call:
    features = copies[0].out_features
    inputs = (
        rows,
        torch.ones(rows.shape[-1], dtype=rows.dtype, device=rows.device),
        torch.ones(features, dtype=rows.dtype, device=rows.device),
        torch.zeros(rows.shape[0], features, dtype=rows.dtype, device=rows.device),
    )
    places = [_Neighbourhood(layer) for layer in copies]
    for place in places:
        place.compile(fullgraph=True, dynamic=False)

    def call() -> None:
        with torch.no_grad():
            for place in places:
                place(*inputs)

    return as_graph(call, rows.device)
