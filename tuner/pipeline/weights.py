"""Where tensors come from: safetensors, seeded random numbers, or a pipeline the app built.

Every load goes through one `WeightSource`, so that its peak is the plan's own and never that of
the unquantized model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import nn

from registry.errors import InvalidInput


class WeightSource(Protocol):
    """One component's weights by fully qualified name."""

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A tensor of `like`'s shape and dtype on `device`, owned by the caller."""
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
        self._files = _safetensors_files(folder)
        self._open: dict[Path, Any] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt", device="cpu")
        read: torch.Tensor = self._open[path].get_tensor(name)
        if read.shape != like.shape:
            raise InvalidInput(
                f"{path.name}: {name!r} has shape {tuple(read.shape)}, the config says"
                f" {tuple(like.shape)}",
                hint="The folder's weights and config.json do not belong together.",
            )
        return read.to(device=device, dtype=like.dtype, copy=True)


class ModuleWeights:
    """Tensors that a module in memory already holds (an app's own pipeline, or a state dict)."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self._tensors[name].detach().to(device=device, dtype=like.dtype)


FUSED_PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


class FusedWeights:
    """Another source, with fused QKV projections made from their parts as they are asked for."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        prefix, _, leaf = name.rpartition(".")
        owner, _, layer = prefix.rpartition(".")
        if layer not in FUSED_PARTS:
            return self._inner.tensor(name, like, device)
        parts = FUSED_PARTS[layer]
        rows = like.shape[0] // len(parts)
        piece = like.new_empty((rows, *like.shape[1:]), device="meta")
        read = [self._inner.tensor(f"{owner}.{part}.{leaf}", piece, device) for part in parts]
        return torch.cat(read)


def component_source(
    component: str, module: nn.Module, folder: Path | None, seed: int
) -> WeightSource:
    """The source for one component: random numbers without a folder, else its safetensors.

    Checkpoints whose names the module no longer has (older layouts) are read by the library's own
    `from_pretrained` on the CPU, which knows how to rename them.
    """
    if folder is None:
        return RandomWeights(component, seed)
    source = SafetensorsWeights(folder / component)
    if parameter_names(module) <= source.names():
        return source
    loaded = type(module).from_pretrained(  # type: ignore[attr-defined]
        str(folder / component), torch_dtype=next(module.parameters()).dtype
    )
    return ModuleWeights(dict(loaded.state_dict()))


def parameter_names(module: nn.Module) -> frozenset[str]:
    """Names of parameters and persistent buffers, each shared tensor once."""
    persistent = set(module.state_dict(keep_vars=True))
    parameters = {name for name, _ in module.named_parameters()}
    buffers = {name for name, _ in module.named_buffers() if name in persistent}
    return frozenset(parameters | buffers)


def _safetensors_files(folder: Path) -> dict[str, Path]:
    """Tensor name to file, from the index or from single files. Raises InvalidInput for none."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in mapping.items()}
    files = [path for path in sorted(folder.glob("*.safetensors")) if ".fp16." not in path.name]
    if not files:
        raise InvalidInput(
            f"{folder} holds no .safetensors file",
            hint="Pickled checkpoints are not read; save with `safe_serialization=True`.",
        )
    names: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            names |= dict.fromkeys(opened.keys(), path)
    return names
