"""What the bf16 reference did, kept so that another plan can be held against it.

One safetensors file per (shape, prompt, seed): prompt embeddings, the denoiser's inputs and
output at a few steps along the trajectory, and the picture.
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

from registry.workload import Shape

CAPTURED_STEPS = 5


def captured_steps(steps: int) -> tuple[int, ...]:
    """Which of `steps` denoiser calls are kept: spread from the first to the last."""
    last = steps - 1
    return tuple(sorted({round(last * part / (CAPTURED_STEPS - 1)) for part in range(5)}))


def reference_path(folder: Path, shape: Shape, pair: int) -> Path:
    """The file of one shape and one (prompt, seed) pair."""
    return (
        folder
        / f"{shape.width}x{shape.height}x{shape.frames}b{shape.batch_size}-{pair}.safetensors"
    )


class Capture:
    """Collects what a request of the reference does."""

    def __init__(self, steps: int) -> None:
        self._wanted = captured_steps(steps)
        self._calls = 0
        self.tensors: dict[str, torch.Tensor] = {}
        self.constants: dict[str, Any] = {}

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
        for position, value in enumerate(args):
            self._put(f"{call}.in.{position}", value)
        for name, value in kwargs.items():
            self._put(f"{call}.in.{name}", value)
        self._put(f"{call}.out", first_tensor(output))

    def _put(self, path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        elif isinstance(value, dict):
            for key, item in value.items():
                self._put(f"{path}/{key}", item)
        else:
            self.constants[path] = value

    def save(self, path: Path, embeddings: tuple[Any, ...], image: torch.Tensor) -> None:
        for number, tensor in enumerate(embeddings):
            if isinstance(tensor, torch.Tensor):
                self._put(f"embedding.{number}", tensor)
        self._put("image", image)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, metadata={"constants": json.dumps(self.constants)})


class Reference:
    """One saved capture, read lazily."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._constants = json.loads(self._file.metadata()["constants"])
        self._names = sorted(self._file.keys())

    def steps(self) -> list[int]:
        return sorted(int(name.split(".")[0]) for name in self._names if name.endswith(".out"))

    def output(self, step: int, device: torch.device) -> torch.Tensor:
        return self._tensor(f"{step}.out", device)

    def image(self) -> torch.Tensor:
        return self._tensor("image", torch.device("cpu"))

    def embeddings(self, device: torch.device) -> dict[int, torch.Tensor]:
        names = [name for name in self._names if name.startswith("embedding.")]
        return {int(name.split(".")[1]): self._tensor(name, device) for name in names}

    def inputs(self, step: int, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the denoiser's call at `step`."""
        prefix = f"{step}.in."
        values: dict[str, Any] = {}
        for name, constant in self._constants.items():
            if name.startswith(prefix):
                _place(values, name.removeprefix(prefix), constant)
        for name in self._names:
            if name.startswith(prefix):
                _place(values, name.removeprefix(prefix), self._tensor(name, device))
        positions = sorted(int(key) for key in values if key.isdigit())
        named = {key: value for key, value in values.items() if not key.isdigit()}
        return [values[str(position)] for position in positions], named

    def _tensor(self, name: str, device: torch.device) -> torch.Tensor:
        read: torch.Tensor = self._file.get_tensor(name)
        return read.to(device)


def _place(values: dict[str, Any], path: str, value: Any) -> None:
    name, _, rest = path.partition("/")
    if rest:
        _place(values.setdefault(name, {}), rest, value)
    else:
        values[name] = value


def first_tensor(output: Any) -> torch.Tensor:
    """The prediction in a denoiser's output: a tuple's first, or a named output's first field."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found
