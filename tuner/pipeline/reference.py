"""What the bf16 reference did, kept so that another plan can be held against it.

One safetensors file per (shape, prompt, seed): prompt embeddings, the denoiser's inputs and
output at a few steps along the trajectory, the scheduler's timesteps, the picture, and one of the
same prompt from another seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from registry.digest import digest, short
from registry.errors import InvalidInput
from registry.workload import Shape

CAPTURED_STEPS = 5


def captured_steps(steps: int) -> tuple[int, ...]:
    """Which of `steps` denoiser calls are kept: spread from the first to the last."""
    last = steps - 1
    parts = range(CAPTURED_STEPS)
    return tuple(sorted({round(last * part / (CAPTURED_STEPS - 1)) for part in parts}))


def reference_path(folder: Path, shape: Shape, pair: int) -> Path:
    """The file of one shape and one (prompt, seed) pair."""
    request = short(digest(shape.model_copy(update={"weight": 1.0})))
    return folder / f"{shape.width}x{shape.height}-{request}-{pair}.safetensors"


class Capture:
    """Collects what a request of the reference does."""

    def __init__(self, steps: int) -> None:
        self._wanted = captured_steps(steps)
        self._calls = 0
        self._tensors: dict[str, torch.Tensor] = {}
        self._constants: dict[str, Any] = {}
        self._trees: dict[int, str] = {}

    @contextmanager
    def watching(self, denoiser: nn.Module) -> Iterator[None]:
        """Keep inputs and output of the wanted calls of an uncompiled denoiser."""
        handle = denoiser.register_forward_hook(self._keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        call, self._calls = self._calls, self._calls + 1
        if call not in self._wanted:
            return
        leaves, tree = tree_flatten((args, kwargs))
        self._trees[call] = treespec_dumps(tree)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._put(f"{call}.in.{number}", leaf)
            else:
                self._constants[f"{call}.in.{number}"] = leaf
        self._put(f"{call}.out", first_tensor(output))

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    def save(
        self,
        path: Path,
        embeddings: tuple[Any, ...],
        image: torch.Tensor,
        *,
        other_seed: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
    ) -> None:
        """Write everything. `image` is (batch, channels, height, width) in [0, 1], `other_seed`
        another of the same prompt and shape; `timesteps` are the scheduler's."""
        for number, tensor in enumerate(embeddings):
            if isinstance(tensor, torch.Tensor):
                self._put(f"embedding.{number}", tensor)
        self._put("image", image)
        if other_seed is not None:
            self._put("other_seed", other_seed)
        if timesteps is not None:
            self._put("timesteps", timesteps)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"constants": json.dumps(self._constants), "trees": json.dumps(self._trees)}
        save_file(self._tensors, path, metadata=metadata)


class Reference:
    """One saved capture, read lazily. Raises InvalidInput where there is none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InvalidInput(
                f"no reference {path.name} in {path.parent}:"
                " the baseline wrote other shapes, prompts or seeds"
            )
        self._file = safe_open(path, framework="pt")
        metadata = self._file.metadata()
        self._constants: dict[str, Any] = json.loads(metadata["constants"])
        self._trees: dict[str, str] = json.loads(metadata["trees"])
        self._names = frozenset(self._file.keys())

    def steps(self) -> list[int]:
        return sorted(int(step) for step in self._trees)

    def output(self, step: int, device: torch.device) -> torch.Tensor:
        return self._tensor(f"{step}.out", device)

    def image(self) -> torch.Tensor:
        return self._tensor("image", torch.device("cpu"))

    def other_seed(self) -> torch.Tensor | None:
        """The picture of the same prompt from another seed, where one was drawn."""
        return self._optional("other_seed")

    def timesteps(self) -> torch.Tensor | None:
        """The scheduler's, shape (steps,); None where it has none."""
        return self._optional("timesteps")

    def embeddings(self, device: torch.device) -> dict[int, torch.Tensor]:
        """By position in what `encode_prompt` returned."""
        names = [name for name in self._names if name.startswith("embedding.")]
        return {int(name.split(".")[1]): self._tensor(name, device) for name in sorted(names)}

    def inputs(self, step: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the denoiser's call at `step`."""
        tree = treespec_loads(self._trees[str(step)])
        names = [f"{step}.in.{number}" for number in range(tree.num_leaves)]
        leaves = [
            self._tensor(name, device) if name in self._names else self._constants[name]
            for name in names
        ]
        args, kwargs = tree_unflatten(leaves, tree)
        return args, kwargs

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._tensor(name, torch.device("cpu")) if name in self._names else None

    def _tensor(self, name: str, device: torch.device) -> torch.Tensor:
        read: torch.Tensor = self._file.get_tensor(name)
        return read.to(device)


def timesteps_of(pipe: Any) -> torch.Tensor | None:
    """Those of the last request's scheduler; None for a pipeline that has none."""
    found = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    return found.detach().float().cpu() if isinstance(found, torch.Tensor) else None


def same_schedule(found: torch.Tensor | None, wanted: torch.Tensor | None) -> bool:
    """Whether two requests went through the same timesteps. True where none are `wanted`."""
    if wanted is None:
        return True
    return found is not None and found.shape == wanted.shape and torch.allclose(found, wanted)


def first_tensor(output: Any) -> torch.Tensor:
    """The prediction in a denoiser's output: a tuple's first, or a named output's first field."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found
