"""Encode, then release: a component on the host that visits the device for its own call.

Self-contained on purpose: an exported script carries this class as it stands here.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn


class ReleaseAfterUse(ModelHook):  # type: ignore[misc]
    """Weights never change, so nothing is copied back: the device copies are dropped."""

    def __init__(self, device: torch.device) -> None:
        self.execution_device = device
        self.host: list[tuple[dict[str, Any], str, torch.Tensor]] = []

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        moved: dict[int, Any] = {}
        for layer in module.modules():
            for table in (layer._parameters, layer._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.device != self.execution_device:
                        self.host.append((table, name, tensor))
                        table[name] = self._visit(tensor, moved)
        return send_to_device(args, self.execution_device), send_to_device(
            kwargs, self.execution_device
        )

    def _visit(self, tensor: torch.Tensor, moved: dict[int, Any]) -> Any:
        if id(tensor) not in moved:
            copy = tensor.detach().to(self.execution_device, non_blocking=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
        return moved[id(tensor)]

    def put_back(self, *_called: Any) -> None:
        for table, name, tensor in self.host:
            table[name] = tensor
        self.host.clear()


def release_after_use(module: nn.Module, device: torch.device) -> None:
    """Attach the hook to a component that lies on the host and is used by its forward alone."""
    hook = ReleaseAfterUse(device)
    add_hook_to_module(module, hook)
    # torch's own hook comes also after a forward that raised, where accelerate's does not.
    module.register_forward_hook(hook.put_back, always_call=True)
