"""A key for what compiled code was made of: a module, the inputs of a call, and torch's settings.

Code that was compiled ahead of time has no guards: it is run where the keys are equal, and only
there. So of each input a key holds its layout and which memory it shares, and of plain values the
values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec

from registry.digest import digest
from tuner.pipeline.descriptions import Described, Undescribable, layout
from tuner.pipeline.python_code import PRIMITIVES
from tuner.pipeline.replaced import CodeSeen


@dataclass(frozen=True)
class InputTensor:
    """One input. `storage` numbers the memory it lies in, in the order of the call."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int
    offset: int


@dataclass(frozen=True)
class CallKey:
    """`leaves` are those of the arguments' tree `structure`; `again` says of each which leaf before
    is the very same tensor. `settings` are torch's."""

    structure: TreeSpec
    leaves: tuple[Any, ...]
    again: tuple[int, ...]
    settings: tuple[Any, ...]

    @property
    def described(self) -> Described:
        return [
            str(self.structure),
            *(repr(part) for part in (self.leaves, self.again, self.settings)),
        ]


def call_key(structure: TreeSpec, leaves: list[Any]) -> CallKey:
    """Raises Undescribable for inputs that are neither plain tensors nor plain values, and where
    gradients or modes that see each operation are on."""
    if torch.is_grad_enabled():
        raise Undescribable("a call with gradients")
    storages: dict[int, int] = {}
    first: dict[int, int] = {}
    found = tuple(_leaf(leaf, storages) for leaf in leaves)
    again = tuple(first.setdefault(id(leaf), at) for at, leaf in enumerate(leaves))
    tensors = (isinstance(leaf, torch.Tensor) for leaf in leaves)
    same = tuple(at if is_tensor else -1 for at, is_tensor in zip(again, tensors, strict=True))
    return CallKey(structure, found, same, _settings())


def _leaf(leaf: Any, storages: dict[int, int]) -> Any:
    if type(leaf) in PRIMITIVES:
        return (type(leaf).__name__, leaf)
    if type(leaf) is not torch.Tensor or leaf.layout is not torch.strided:
        raise Undescribable(f"an input of {type(leaf).__name__}")
    number = storages.setdefault(leaf.untyped_storage()._cdata, len(storages))
    shape, stride, dtype, device = layout(leaf)
    return InputTensor(shape, stride, dtype, device, number, int(leaf.storage_offset()))


def _settings() -> tuple[Any, ...]:
    """What torch and diffusers decide by beside the inputs."""
    if torch.nn.modules.module._has_any_global_hook():
        raise Undescribable("a hook of all modules")
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise Undescribable("a mode that sees each operation")
    if _dynamo_stance() != "default":
        raise Undescribable("a stance of torch.compile")
    try:
        return tuple(read() for read in _READ)
    except RuntimeError as error:  # where an app set precisions by torch's old and new names
        raise Undescribable("a mixture of settings") from error


def _attention_backend() -> str:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return str(_AttentionBackendRegistry._active_backend)


def attention_code(seen: CodeSeen) -> str:
    """What the functions do that diffusers has for its names of attention backends."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return seen.of_table(_AttentionBackendRegistry._backends)


def _attention_order() -> tuple[int, ...]:
    """Torch's own kernels, the first choice first; nothing where torch has no such order."""
    read = getattr(torch._C, "_get_sdp_priority_order", tuple)
    return tuple(read())


def _inductor() -> str:
    from torch._inductor import config

    return _inductor_of(config.get_hash())


@functools.lru_cache(maxsize=8)
def _inductor_of(_state: bytes) -> str:
    """All that an app or its environment set of Inductor. Its own hash holds folders' names."""
    from torch._inductor import config

    settings: Any = config
    names = set(settings._config) - set(settings._compile_ignored_keys)
    own = sorted(name for name in names if not settings._is_default(name))
    return digest([[name, repr(getattr(settings, name))] for name in own])


def _dynamo_stance() -> str:
    from torch._dynamo import eval_frame

    return str(eval_frame._stance.stance)


def _autocast() -> tuple[Any, ...]:
    devices = ("cpu", "cuda")
    on = tuple(torch.is_autocast_enabled(device) for device in devices)
    return on if not any(on) else (*on, *map(torch.get_autocast_dtype, devices))


_CUDA = torch.backends.cuda
_READ: tuple[Callable[[], Any], ...] = (
    torch.is_inference_mode_enabled,
    torch.get_default_dtype,
    torch.get_num_threads,
    torch.are_deterministic_algorithms_enabled,
    torch.get_float32_matmul_precision,
    _CUDA.flash_sdp_enabled,
    _CUDA.mem_efficient_sdp_enabled,
    _CUDA.math_sdp_enabled,
    _CUDA.cudnn_sdp_enabled,
    torch._C._get_cublas_allow_fp16_reduced_precision_reduction,
    torch._C._get_cublas_allow_bf16_reduced_precision_reduction,
    torch._C._get_cudnn_allow_tf32,
    torch._C._get_cudnn_benchmark,
    torch._C._get_cudnn_deterministic,
    _autocast,
    _attention_backend,
    _attention_order,
    _inductor,
)


def made_again(leaves: tuple[Any, ...], again: tuple[int, ...]) -> list[Any]:
    """Inputs of this form, their memory shared as it was; their values are whatever was there."""
    sizes = _storage_sizes(leaves)
    storages: dict[int, torch.UntypedStorage] = {}
    made: list[Any] = []
    for leaf, first in zip(leaves, again, strict=True):
        if not isinstance(leaf, InputTensor):
            made.append(leaf[1])
        elif first < len(made):
            made.append(made[first])
        else:
            if leaf.storage not in storages:
                size = sizes[leaf.storage]
                storages[leaf.storage] = torch.UntypedStorage(size, device=leaf.device)
            empty = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
            memory = storages[leaf.storage]
            made.append(empty.set_(memory, leaf.offset, leaf.shape, leaf.stride))
    return made


def _storage_sizes(leaves: tuple[Any, ...]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for leaf in leaves:
        if isinstance(leaf, InputTensor):
            reach = zip(leaf.shape, leaf.stride, strict=True)
            last = leaf.offset + sum((size - 1) * step for size, step in reach)
            needed = (last + 1) * leaf.dtype.itemsize
            sizes[leaf.storage] = max(needed, sizes.get(leaf.storage, 0))
    return sizes
