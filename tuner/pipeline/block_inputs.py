"""One block of a denoiser by itself: its weights, and inputs of the shapes that it really gets."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from registry.errors import InvalidInput
from registry.plan import ComponentPlan
from registry.workload import Shape
from tuner.model_spec import ModelSpec
from tuner.pipeline.components import component_role
from tuner.pipeline.load import materialise
from tuner.pipeline.profiles import phantom_pipeline, profile
from tuner.pipeline.skeleton import Skeleton
from tuner.pipeline.weights import WeightSource, component_source

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
INPUT_SEED = 0


class BlockShop:
    """Gives single blocks of a model's denoiser. `shapes` are the requests they are asked for.

    The pipeline's own Python runs once for each shape with its modules on meta, as the inventory
    does, and what each asked block is called with is noted. Raises InvalidInput for a block that
    the denoiser does not have.
    """

    def __init__(
        self, skeleton: Skeleton, spec: ModelSpec, paths: Collection[str], shapes: Collection[Shape]
    ) -> None:
        self._name, denoiser = _denoiser(skeleton)
        self._skeleton, self._spec = skeleton, spec
        # Copied first: a phantom's buffers go to meta too, and nothing could compute them again.
        self._blocks = {path: copy.deepcopy(_inside(denoiser, path)) for path in paths}
        self._source: WeightSource = component_source(
            self._name, denoiser, skeleton.folder, spec.seed
        )
        pipe = phantom_pipeline(skeleton)
        self._calls = {shape: _calls(pipe, denoiser, paths, shape) for shape in shapes}

    def block(self, path: str, device: torch.device) -> nn.Module:
        """With the model's own weights, unquantized. To be asked for once."""
        block = self._blocks.pop(path)
        source = _Inside(self._source, path)
        materialise(self._name, block, source, ComponentPlan(), device, lambda *_: None)
        return block.eval()

    def arguments(self, path: str, shape: Shape, device: torch.device) -> Arguments:
        """Normal numbers in the shapes, dtypes and memory order of the block's real inputs."""
        generator = torch.Generator(device=device).manual_seed(INPUT_SEED)

        def real(item: Any) -> Any:
            return _filled(item, device, generator) if isinstance(item, torch.Tensor) else item

        args, kwargs = tree_map(real, self._calls[shape][path])
        return args, kwargs


class _AllSeen(Exception):
    """Nothing more is to be learned from a request."""


class _Inside:
    """A component's weights as one block of it names them."""

    def __init__(self, source: WeightSource, path: str) -> None:
        self._source, self._path = source, path

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self._source.tensor(f"{self._path}.{name}", like, device)

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._source.buffer(f"{self._path}.{name}", like)


def _denoiser(skeleton: Skeleton) -> tuple[str, nn.Module]:
    for name, module in skeleton.modules.items():
        if component_role(name, module) == "denoiser":
            return name, module
    raise InvalidInput(f"{skeleton.pipeline_class} has no transformer or unet to time")


def _inside(denoiser: nn.Module, path: str) -> nn.Module:
    try:
        return denoiser.get_submodule(path)
    except AttributeError as error:
        raise InvalidInput(f"the denoiser has no block {path!r}") from error


def _calls(
    pipe: Any, denoiser: nn.Module, paths: Collection[str], shape: Shape
) -> Mapping[str, Arguments]:
    """What each block is called with first, on meta. The request ends with the last of them."""
    found: dict[str, Arguments] = {}
    hooks = []
    for path in paths:

        def note(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            found.setdefault(path, (args, kwargs))
            if len(found) == len(paths):
                raise _AllSeen

        block = denoiser.get_submodule(path)
        hooks.append(block.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with suppress(_AllSeen):
            profile(pipe, shape)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := sorted(set(paths) - set(found)):
        raise InvalidInput(f"a request of {shape.label} never calls {', '.join(missing)}")
    return found


def _filled(like: torch.Tensor, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Masks let everything through; indices are all the first."""
    made = torch.empty_like(like, device=device)
    if made.dtype == torch.bool:
        return made.fill_(True)
    return made.normal_(generator=generator) if made.is_floating_point() else made.zero_()
