"""Counts one call of a module on the meta device: FLOPs, rows of each linear layer, live bytes.

Nothing is computed. Attention is counted and not expanded, as fused kernels never hold its scores.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class Tally:
    """What was counted; bytes in the dtypes as they were."""

    def __init__(self) -> None:
        self.linear_flops = 0
        self.convolution_flops = 0
        self.attention_flops = 0
        self.elementwise_bytes = 0
        self.activation_peak_bytes = 0
        self.linear_rows: dict[str, int] = {}
        self.masked_attention = False


class _Attention(TorchFunctionMode):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3] if len(args) >= 3 else _named(args, kwargs or {})
        mask = args[3] if len(args) >= 4 else (kwargs or {}).get("attn_mask")
        self._tally.masked_attention |= mask is not None
        rows = math.prod(query.shape[:-1])
        self._tally.attention_flops += 2 * rows * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    return [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]


class _LiveBytes(TorchDispatchMode):
    """Adds up storages as operators make them and subtracts each when it dies. The weights'
    own storages, which views of them share, count for nothing."""

    def __init__(self, tally: Tally, module: nn.Module) -> None:
        TorchDispatchMode.__init__(self)
        self._tally = tally
        weights = [*module.parameters(), *module.buffers()]
        self._alive: dict[int, int] = {item.untyped_storage()._cdata: 0 for item in weights}
        self._total = 0

    def hold(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and tensor.device == META:
                self._add(tensor.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> int:
        name = storage._cdata
        if name in self._alive:
            return 0
        size = storage.nbytes()
        self._alive[name] = size
        self._total += size
        weakref.finalize(storage, self._drop, name)
        self._tally.activation_peak_bytes = max(self._tally.activation_peak_bytes, self._total)
        return size

    def _drop(self, name: int) -> None:
        self._total -= self._alive.pop(name, 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = sum(
            self._add(item.untyped_storage())
            for item in tree_leaves(result)
            if isinstance(item, torch.Tensor) and item.device == META
        )
        name = func._schema.name
        if name in ("aten::bmm", "aten::baddbmm"):
            left, right = args[-2:]
            self._tally.attention_flops += 2 * math.prod(left.shape) * right.shape[-1]
        elif made and name not in ("aten::mm", "aten::addmm", "aten::convolution"):
            self._tally.elementwise_bytes += made + _bytes(args)
        return result


def _bytes(args: Any) -> int:
    tensors = (item for item in tree_leaves(args) if isinstance(item, torch.Tensor))
    return sum(item.numel() * item.element_size() for item in tensors)


def count_call(
    module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, Tally]:
    """`call(*args, **kwargs)` with `module`, its inputs and parameters on meta. Returns its output
    and what it cost; inputs count as live throughout."""
    tally = Tally()
    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                hook = layer.register_forward_hook(_linear_hook(name, tally))
                stack.callback(hook.remove)
            elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                hook = layer.register_forward_hook(_convolution_hook(tally))
                stack.callback(hook.remove)
        live = stack.enter_context(_LiveBytes(tally, module))
        live.hold((args, kwargs))
        stack.enter_context(_Attention(tally))
        output = call(*args, **kwargs)
    return output, tally


def _linear_hook(name: str, tally: Tally) -> Callable[[nn.Module, Any, Any], None]:
    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        rows = output.numel() // output.shape[-1]
        tally.linear_rows[name] = tally.linear_rows.get(name, 0) + rows
        weight = layer._parameters["weight"]
        tally.linear_flops += 2 * rows * (weight.numel() if weight is not None else 0)

    return count


def _convolution_hook(tally: Tally) -> Callable[[nn.Module, Any, Any], None]:
    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        weight = layer._parameters["weight"]
        if weight is not None:
            positions = output.numel() // output.shape[1]
            tally.convolution_flops += 2 * positions * weight.numel()

    return count
