"""A component's forward recorded once as a CUDA graph for each layout of its inputs, and replayed.

Python and the driver take some time for each of a thousand kernels; a graph is one launch. What is
replayed are the very kernels that the forward launched, compiled or not, at the very addresses: its
weights must stay where they are, and inputs are copied to where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import update_wrapper
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

MOST_LAYOUTS = 16
"""Recorded of one component; each holds its kernels' memory. What comes beyond runs as it is."""
WARM_UP_CALLS = 2

Leaves = list[Any]


class RecordedForward:
    """Calls like the forward it is given. Calls that no graph can stand for run as they are: with
    gradients, or with inputs on the host or of unknown kinds, whose values would be recorded with
    the rest."""

    def __init__(self, forward: Callable[..., Any], device: torch.device) -> None:
        self._forward, self._device = forward, device
        # Pipelines ask what a forward takes.
        update_wrapper(self, forward)
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if torch.is_grad_enabled() or not all(map(self._can_stand_for, leaves)):
            return self._forward(*args, **kwargs)
        key = (structure, *map(_layout, leaves))
        recording = self._recordings.get(key)
        if recording is None:
            if len(self._recordings) == MOST_LAYOUTS:
                return self._forward(*args, **kwargs)
            recording = _Recording(self._forward, leaves, structure, self._device, self._pool)
            self._pool = recording.pool
            self._recordings[key] = recording
        return recording.replay(leaves)

    def _can_stand_for(self, leaf: Any) -> bool:
        if isinstance(leaf, torch.Tensor):
            return leaf.device == self._device
        return isinstance(leaf, Hashable)


class _Recording:
    """One graph. All of a component share one pool of memory: only one runs at a time, and its
    results are copied out before the next one does."""

    def __init__(
        self,
        forward: Callable[..., Any],
        leaves: Leaves,
        structure: Any,
        device: torch.device,
        pool: Any,
    ) -> None:
        self._inputs = [_own(leaf) for leaf in leaves]
        args, kwargs = tree_unflatten(self._inputs, structure)
        _warm_up(lambda: forward(*args, **kwargs), device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = forward(*args, **kwargs)
        self.pool = self._graph.pool()

    def replay(self, leaves: Leaves) -> Any:
        for own, given in zip(self._inputs, leaves, strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(given)
        self._graph.replay()
        outputs, structure = tree_flatten(self._outputs)
        return tree_unflatten([_own(item) for item in outputs], structure)


def record(module: nn.Module, device: torch.device) -> None:
    """From now on calls of `module` are recorded and replayed, also where it is compiled whole."""
    compiled = module._compiled_call_impl
    if compiled is not None:
        module._compiled_call_impl = RecordedForward(compiled, device)
    else:
        module.forward = RecordedForward(module.forward, device)


def _warm_up(call: Callable[[], Any], device: torch.device) -> None:
    """Compiles, chooses kernels and allocates what libraries keep, none of which may be recorded,
    on a stream of its own, as recording will."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream(device).wait_stream(side)


def _own(leaf: Any) -> Any:
    """A copy of a tensor, which may be written to in any later call."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with torch.inference_mode(mode=False):
        return leaf.clone()


def _layout(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.stride(), leaf.dtype)
    return (type(leaf), leaf)
