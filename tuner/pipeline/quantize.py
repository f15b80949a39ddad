"""Schemes of a plan as torchao configs, and which layers each touches."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from registry.errors import InvalidPlan
from registry.plan import LayerScheme, Quantization
from tuner.layers import ACTIVATION_FLOOR, takes_shape

FLOAT8_ARITHMETIC: frozenset[LayerScheme] = frozenset(
    {"float8_dynamic_tensor", "float8_dynamic_row", "float8_static_tensor"}
)
FLOAT8_CAPABILITY = (8, 9)
PROBE_FEATURES = 256
"""Of a layer that every scheme takes."""


def scheme_config(scheme: LayerScheme) -> Any:
    """The torchao config of one scheme. `set_inductor_config=False` everywhere: `quantize_` would
    rewrite Inductor's global settings, which a plan states itself."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
        PerTensor,
    )

    if scheme == "int8_weight_only":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if scheme == "int8_dynamic":
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if scheme == "float8_weight_only":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    if scheme == "float8_dynamic_tensor":
        return Float8DynamicActivationFloat8WeightConfig(
            granularity=PerTensor(),
            activation_value_lb=ACTIVATION_FLOOR,
            set_inductor_config=False,
        )
    if scheme == "float8_dynamic_row":
        return Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(),
            activation_value_lb=ACTIVATION_FLOOR,
            set_inductor_config=False,
        )
    if scheme == "float8_static_tensor":
        from tuner.pipeline.static_float8 import StaticFloat8Config

        return StaticFloat8Config()
    raise InvalidPlan(f"scheme {scheme!r} quantizes nothing")


def scheme_of(name: str, layer: nn.Linear, plan: Quantization) -> LayerScheme:
    """What the plan makes of this layer, by its name inside the component; "none" for nothing."""
    wanted = plan.wanted(name)
    rows, columns = layer.weight.shape
    if wanted == "none" or min(rows, columns) < max(plan.min_features, 1):
        return "none"
    if not takes_shape(wanted, rows, columns):
        return "none"
    return "none" if any(fnmatchcase(name, pattern) for pattern in plan.skip) else wanted


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer's weight is made of other tensors: torchao's, ours, an exported script's."""
    weight = module._parameters.get("weight")
    return weight is not None and is_traceable_wrapper_subclass(weight.data)


def quantize_layer(name: str, layer: nn.Linear, scheme: LayerScheme) -> None:
    """Quantize one materialised linear layer in place. Raises InvalidPlan where torchao refuses, or
    leaves the layer as it was: a plan is applied as written or not at all.

    A mixed plan comes through here too, a layer at a time: torchao's `FqnToConfig` wants a model
    whose weights are all there at once, which this load avoids, and its patterns also meet the
    containers of layers, which some configs refuse. The weights are the same."""
    from torchao.quantization import quantize_

    shape = tuple(layer.weight.shape)
    try:
        quantize_(layer, scheme_config(scheme), filter_fn=lambda *_: True)
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise InvalidPlan(
            f"torchao cannot quantize {name!r} of shape {shape} under {scheme!r}: {error}"
        ) from error
    if not is_quantized(layer):
        raise InvalidPlan(f"torchao left {name!r} of shape {shape} unquantized under {scheme!r}")
    for parameter in layer.parameters():
        parameter.requires_grad_(False)


def why_no_scheme(scheme: LayerScheme, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no layer can be quantized so in this process. On a CPU torchao is asked with a small
    layer; a GPU's answer is its compute capability, and costs it no memory."""
    if device.type == "cuda":
        if scheme not in FLOAT8_ARITHMETIC:
            return None
        return _why_no_float8(scheme, dtype, torch.cuda.get_device_capability(device))
    layer = nn.Linear(PROBE_FEATURES, PROBE_FEATURES, bias=False, dtype=dtype)
    try:
        quantize_layer("a layer", layer, scheme)
    except InvalidPlan as error:
        return error.message
    return None


def _why_no_float8(
    scheme: LayerScheme, dtype: torch.dtype, capability: tuple[int, int]
) -> str | None:
    if capability < FLOAT8_CAPABILITY:
        own, needed = (".".join(map(str, item)) for item in (capability, FLOAT8_CAPABILITY))
        return f"it needs a GPU of compute capability {needed}, and this one has {own}"
    if scheme == "float8_dynamic_row" and dtype != torch.bfloat16:
        return "torchao takes bfloat16 alone for it"
    return None


def layer_types(module: nn.Module) -> dict[str, int]:
    """How many layers of each resolved kind: {"Linear/Float8Tensor": 304, "LayerNorm": 76}."""
    counts: dict[str, int] = {}
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if weight is None:
            continue
        kind = type(weight).__name__ if is_quantized(layer) else str(weight.dtype).split(".")[-1]
        label = f"{type(layer).__name__}/{kind}"
        counts[label] = counts.get(label, 0) + 1
    return counts
