"""Where tensors come from: safetensors, seeded random numbers, or a pipeline the app built.

Every load goes through one `WeightSource`, so that its peak is the plan's own and never that of
the unquantized model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from registry.errors import InvalidInput
from tuner.pipeline.checkpoint import open_weights, tensor_files
from tuner.pipeline.fuse import Parts


class WeightSource(Protocol):
    """One component's weights by fully qualified name."""

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A parameter of `like`'s shape and dtype on `device`, owned by the caller. Asked for
        once."""
        ...

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A persistent buffer, on the CPU; `like`, as constructed, where the source has none."""
        ...


class RandomWeights:
    """Seeded normal numbers, filled in place on the device that asks.

    Scaled so that activations keep a sane size through a deep network: matrices by
    1/sqrt(fan-in), norm weights around one, biases small. One name always gets the same numbers
    on one kind of device; CPU and CUDA generators differ, so compare only within one.
    """

    def __init__(self, component: str, seed: int) -> None:
        self._component = component
        self._seed = seed

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        generator = torch.Generator(device=device)
        text = f"{self._seed}/{self._component}/{name}".encode()
        generator.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
        filled = torch.empty(like.shape, dtype=like.dtype, device=device)
        mean, deviation = _scale(name, like)
        return filled.normal_(mean, deviation, generator=generator)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return like


T5_QUERY = "SelfAttention.q.weight"
T5_HEAD_FEATURES = 64
"""T5 leaves the 1/sqrt(d) of attention to its query weights, as its own initialisation does."""


def _scale(name: str, like: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation."""
    if like.dim() >= 2:
        fan_in = math.prod(like.shape[1:])
        if name.endswith(T5_QUERY):
            fan_in *= T5_HEAD_FEATURES
        return 0.0, 1.0 / math.sqrt(fan_in)
    if name.endswith("weight"):
        return 1.0, 0.02
    return 0.0, 0.02


class SafetensorsWeights:
    """The safetensors files of one component's folder, opened once and read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self._files = tensor_files(folder)
        self._open: dict[Path, Any] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = open_weights(path)
        read: torch.Tensor = self._open[path].get_tensor(name)
        if read.shape != like.shape:
            raise InvalidInput(
                f"{path}: {name!r} has shape {tuple(read.shape)}, the config says"
                f" {tuple(like.shape)}",
                hint="The folder's weights and config.json do not belong together.",
            )
        return read.to(device=device, dtype=like.dtype, copy=True)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self.tensor(name, like, torch.device("cpu")) if name in self._files else like


class ModuleWeights:
    """Tensors that a module in memory already holds (an app's own pipeline, or a state dict).
    Each is let go as it is given, so that its memory can be freed."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self._tensors.pop(name).detach().to(device=device, dtype=like.dtype)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._tensors.get(name, like).detach().to(like.dtype)


class FusedWeights:
    """Another source, with fused projections made from their parts as they are asked for."""

    def __init__(self, inner: WeightSource, fused: Mapping[str, Parts]) -> None:
        self._inner, self._fused = inner, fused

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        layer, _, leaf = name.rpartition(".")
        parts = self._fused.get(layer)
        if parts is None:
            return self._inner.tensor(name, like, device)
        read = []
        for part, rows in parts:
            piece = like.new_empty((rows, *like.shape[1:]), device="meta")
            read.append(self._inner.tensor(f"{part}.{leaf}", piece, device))
        return torch.cat(read)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._inner.buffer(name, like)


def component_source(
    component: str, module: nn.Module, folder: Path | None, seed: int
) -> WeightSource:
    """The source for one component, not yet fused: random numbers without a folder, else its
    safetensors.

    Checkpoints in an older layout (CLIP's `text_model.` names) are read by the library's own
    `from_pretrained` on the CPU, which knows how to rename them: the component is then held whole
    in host memory while it loads. Raises InvalidInput for a checkpoint that lacks weights.
    """
    if folder is None:
        return RandomWeights(component, seed)
    source = SafetensorsWeights(folder / component)
    if {name for name, _ in module.named_parameters()} <= source.names():
        return source
    return ModuleWeights(_renamed(module, folder / component))


def _renamed(module: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    dtype = next(module.parameters()).dtype
    try:
        loaded, notes = type(module).from_pretrained(  # type: ignore[attr-defined]
            str(folder), output_loading_info=True, use_safetensors=True, dtype=dtype
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(
            f"{folder}: {type(module).__name__} cannot read its weights: {reason}"
        ) from error
    if notes["missing_keys"]:
        raise InvalidInput(
            f"{folder} lacks weights of {type(module).__name__}:"
            f" {', '.join(sorted(notes['missing_keys'])[:3])} and so on",
            hint="The folder's weights and config.json do not belong together.",
        )
    state: dict[str, torch.Tensor] = loaded.state_dict()
    return state
