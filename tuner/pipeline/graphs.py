"""A component's forward recorded once as a CUDA graph for each layout of its inputs, and replayed.

Python and the driver take some time for each of a thousand kernels; a graph is one launch. What is
replayed are the very kernels that the forward launched, compiled or not, at the very addresses:
inputs are copied to where they were, and weights that are no longer where they were, or layers that
are no longer the same (LoRA), make it record again. Numbers that Python holds, such as the scale of
an adapter, are recorded as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import update_wrapper
from threading import RLock
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

MOST_LAYOUTS = 16
"""Recorded of one component; each holds its kernels' memory. What comes beyond runs as it is."""
WARM_UP_CALLS = 2

Leaves = list[Any]


class _Shared:
    """Of all recordings of a component: one stream to record on, one pool of memory, since only one
    runs at a time and its results are copied out before the next one does, and the end of the last
    replay."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.done = torch.cuda.Event()
        self.pool: Any = None


class _Recording:
    """One graph, with the tensors that it reads and writes."""

    def __init__(
        self, forward: Callable[..., Any], leaves: Leaves, structure: Any, shared: _Shared
    ) -> None:
        self._shared = shared
        self._inputs = [_own(leaf) for leaf in leaves]
        args, kwargs = tree_unflatten(self._inputs, structure)
        _warm_up(lambda: forward(*args, **kwargs), shared)
        self._graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(shared.device),
            torch.cuda.graph(
                self._graph,
                pool=shared.pool,
                stream=shared.stream,
                capture_error_mode="thread_local",
            ),
        ):
            self._outputs = forward(*args, **kwargs)
        shared.pool = self._graph.pool()

    def replay(self, leaves: Leaves) -> Any:
        current = torch.cuda.current_stream(self._shared.device)
        current.wait_event(self._shared.done)
        for own, given in zip(self._inputs, leaves, strict=True):
            if isinstance(own, torch.Tensor):
                own.copy_(given)
        with torch.cuda.device(self._shared.device):
            self._graph.replay()
        outputs, structure = tree_flatten(self._outputs)
        found = tree_unflatten([_own(item) for item in outputs], structure)
        self._shared.done.record(current)
        return found


class RecordedForward:
    """Calls like the forward it is given, of `module`. Calls that no graph can stand for run as
    they are: with gradients, or with inputs on the host or of unknown kinds, whose values would be
    recorded with the rest. One call at a time, whatever thread or stream it comes from."""

    def __init__(
        self, forward: Callable[..., Any], module: nn.Module, device: torch.device
    ) -> None:
        self._forward, self._module, self._device = forward, module, device
        # Pipelines ask what a forward takes.
        update_wrapper(self, forward)
        self._recordings: dict[Hashable, _Recording] = {}
        self._contents = 0
        self._lock = RLock()
        self._shared: _Shared | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if torch.is_grad_enabled() or not all(map(self._can_stand_for, leaves)):
            return self._forward(*args, **kwargs)
        with self._lock:
            recording = self._recording(leaves, structure)
            if recording is not None:
                return recording.replay(leaves)
        return self._forward(*args, **kwargs)

    def _can_stand_for(self, leaf: Any) -> bool:
        if isinstance(leaf, torch.Tensor):
            return leaf.device == self._device
        return isinstance(leaf, Hashable)

    def _recording(self, leaves: Leaves, structure: Any) -> _Recording | None:
        """None where there are too many already."""
        contents = hash(tuple(_contents(self._module)))
        if contents != self._contents:
            self._recordings.clear()
            self._contents, self._shared = contents, None
        key = (structure, *map(_kind_of, leaves))
        if key not in self._recordings:
            if len(self._recordings) == MOST_LAYOUTS:
                return None
            self._shared = self._shared or _Shared(self._device)
            made = _Recording(self._forward, leaves, structure, self._shared)
            self._recordings[key] = made
        return self._recordings[key]


def record(module: nn.Module, device: torch.device) -> None:
    """From now on calls of `module` are recorded and replayed, also where it is compiled whole."""
    compiled = module._compiled_call_impl
    if compiled is not None:
        module._compiled_call_impl = RecordedForward(compiled, module, device)
    else:
        module.forward = RecordedForward(module.forward, module, device)


def _warm_up(call: Callable[[], Any], shared: _Shared) -> None:
    """Compiles, chooses kernels and allocates what libraries keep, none of which may be recorded,
    on the stream that will be recorded."""
    current = torch.cuda.current_stream(shared.device)
    shared.stream.wait_stream(current)
    with torch.cuda.stream(shared.stream):
        for _ in range(WARM_UP_CALLS):
            call()
    current.wait_stream(shared.stream)


def _own(leaf: Any) -> Any:
    """A copy of a tensor, which may be written to in any later call."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with torch.inference_mode(mode=False):
        return leaf.clone()


def _kind_of(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.stride(), leaf.dtype)
    return (type(leaf), leaf)


def _contents(module: nn.Module) -> Iterator[int]:
    """Which layers there are, what computes their attention, and where their tensors lie."""
    for layer in module.modules():
        yield id(layer)
        yield id(layer.__dict__.get("processor"))
        for table in (layer._parameters, layer._buffers):
            for tensor in table.values():
                if tensor is not None:
                    yield from _addresses(tensor)


def _addresses(tensor: torch.Tensor) -> Iterator[int]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.data_ptr()
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _addresses(getattr(tensor, name))
