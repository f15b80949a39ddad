"""GELU's tanh form computed without tanh.

0.5·x·(1 + tanh u) is x·sigmoid(2u): the same function, by an exponential that GPUs have an
instruction for, where Inductor's tanh is a library routine of dozens. In compiled blocks of FLUX it
is computed for 57 million numbers, twice where a row's largest must be known first.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.activations import GELU
from torch import nn

TWICE = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def gelu(x: torch.Tensor) -> torch.Tensor:
    """As `functional.gelu(x, approximate="tanh")`, computed in float32."""
    wide = x.float()
    return (wide * torch.sigmoid(TWICE * (wide + CUBIC * wide * wide * wide))).to(x.dtype)


class SigmoidGELU(nn.Module):
    """In place of `nn.GELU(approximate="tanh")`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(x)


class ProjectedSigmoidGELU(GELU):
    """diffusers' GELU, which has the projection before it."""

    def gelu(self, gate: torch.Tensor) -> torch.Tensor:
        return gelu(gate)


def without_tanh(module: nn.Module) -> None:
    """Change every tanh-form GELU inside, in place; all others are left."""
    for layer in list(module.modules()):
        if type(layer) is GELU and layer.approximate == "tanh":
            layer.__class__ = ProjectedSigmoidGELU
        for name, child in layer.named_children():
            if type(child) is nn.GELU and child.approximate == "tanh":
                setattr(layer, name, SigmoidGELU())
