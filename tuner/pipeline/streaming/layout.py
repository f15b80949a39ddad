"""A block's tensors as one run of bytes, and as tensors again over other bytes of that layout.

One run is one copy: hundreds of megabytes at the link's full speed. Quantized weights are taken
apart into their plain inner tensors, by the protocol that torch.compile uses, and keep their
strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

ALIGNMENT_BYTES = 256
"""Of each tensor: what torch's own allocator promises kernels."""

Table = dict[str, Any]
"""The `_parameters` or `_buffers` of one layer."""
Places = list[tuple[Table, str, torch.Tensor]]
"""Tensors, each with where it belongs."""


class BlockTensors:
    """Every parameter and buffer of a block, where each hangs, and its bytes in a run of `size`.

    A tensor that hangs in several places is held once.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self._tensors: dict[int, torch.Tensor] = {}
        self._places: list[tuple[Table, str, int]] = []
        for layer in block.modules():
            for table in (layer._parameters, layer._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        self._tensors.setdefault(id(tensor), tensor)
                        self._places.append((table, name, id(tensor)))
        self.size, self._offsets = 0, dict[int, list[int]]()
        for key, tensor in self._tensors.items():
            self._offsets[key] = [self._reserve(item) for item in plain(tensor)]

    def _reserve(self, tensor: torch.Tensor) -> int:
        offset = self.size
        end = offset + extent(tensor) * tensor.element_size()
        self.size = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offset

    def pack(self, run: torch.Tensor) -> None:
        """Copy every tensor into `run`, a one-dimensional uint8 tensor of at least `size` bytes."""
        for key, tensor in self._tensors.items():
            for item, offset in zip(plain(tensor), self._offsets[key], strict=True):
                target = _over(run, offset, item)
                _copy(item, target)

    def over(self, run: torch.Tensor) -> Places:
        """The block's tensors over the bytes of `run`, each with the place it belongs in."""
        made: dict[int, torch.Tensor] = {}
        for key, tensor in self._tensors.items():
            leaves = zip(plain(tensor), self._offsets[key], strict=True)
            moved = _like(tensor, (_over(run, offset, item) for item, offset in leaves))
            is_parameter = isinstance(tensor, nn.Parameter)
            made[key] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved
        return [(table, name, made[key]) for table, name, key in self._places]


def bind(places: Places) -> None:
    """Put tensors where they belong."""
    for table, name, tensor in places:
        table[name] = tensor


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Between tensors of equal strides; elements that share an address are written once."""
    sizes = [1 if step == 0 else n for n, step in zip(source.shape, source.stride(), strict=True)]
    once = source.as_strided(sizes, source.stride())
    target.as_strided(sizes, source.stride()).copy_(once)


def plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a subclass consists of, or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [leaf for name in names for leaf in plain(getattr(tensor, name))]


def _like(tensor: torch.Tensor, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
    """A tensor of the same class over other leaves."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return next(leaves)
    names, context = tensor.__tensor_flatten__()
    inner = {name: _like(getattr(tensor, name), leaves) for name in names}
    made: torch.Tensor = type(tensor).__tensor_unflatten__(  # type: ignore[attr-defined]
        inner, context, tensor.shape, tensor.stride()
    )
    return made


def extent(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first to its last in memory: more than its own where it skips."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _over(run: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Bytes of `run` as a tensor of `like`'s type, shape and strides. It is no view in autograd's
    sense, which torch.compile would guard differently."""
    empty = torch.empty(0, dtype=like.dtype, device=run.device)
    start = (run.storage_offset() + offset) // like.element_size()
    return empty.set_(run.untyped_storage(), start, like.shape, like.stride())
