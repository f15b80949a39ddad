"""Linear weights in float8 whose inputs are cast to float8 as they are, at scale one.

A scale that is known beforehand needs no maximum of the input, so that the cast becomes part of
whatever kernel computes that input. float8 (e4m3) keeps its relative precision from 2^-6 to 448:
inputs beyond are clamped, much smaller ones lose bits. Whether a model bears that the gate decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from torchao.utils import TorchAOBaseTensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max


class StaticFloat8Tensor(TorchAOBaseTensor):  # type: ignore[misc]
    """A weight (out, in) as `qdata` · `scale`, one scale for all of it; `input_scale` is one."""

    tensor_data_names: ClassVar[list[str]] = ["qdata", "scale", "input_scale"]
    tensor_attribute_names: ClassVar[list[str]] = ["dtype"]

    def __new__(
        cls,
        qdata: torch.Tensor,
        _scale: torch.Tensor,
        _input_scale: torch.Tensor,
        dtype: torch.dtype,
    ) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, qdata.shape, dtype=dtype, device=qdata.device, requires_grad=False
        )

    def __init__(
        self,
        qdata: torch.Tensor,
        scale: torch.Tensor,
        input_scale: torch.Tensor,
        _dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.qdata, self.scale, self.input_scale = qdata, scale, input_scale

    @classmethod
    def of(cls, weight: torch.Tensor) -> torch.Tensor:
        """A weight of zeros keeps a scale that can be divided by."""
        exact = weight.detach().float()
        scale = (exact.abs().amax() / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        qdata = (exact / scale).clamp(-LARGEST, LARGEST).to(FLOAT8)
        return cls(qdata, scale, torch.ones_like(scale), weight.dtype)

    def _stable_hash_for_caching(self) -> str:
        """All that compiled code can depend on: torch's name for its key of compiled graphs."""
        parts = (getattr(self, name) for name in self.tensor_data_names)
        told = ((item.shape, item.stride(), item.dtype, item.device) for item in parts)
        return f"{type(self).__qualname__} {self.dtype} {list(told)}"

    def dequantize(self) -> torch.Tensor:
        return (self.qdata.float() * self.scale).to(self.dtype)


@StaticFloat8Tensor.implements(torch.ops.aten.linear.default)  # type: ignore[untyped-decorator]
@StaticFloat8Tensor.implements_torch_function(functional.linear)  # type: ignore[untyped-decorator]
def _linear(_func: Any, _types: Any, args: Any, kwargs: Any) -> torch.Tensor:
    inputs, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    rows = inputs.reshape(-1, inputs.shape[-1]).clamp(-LARGEST, LARGEST).to(FLOAT8).contiguous()
    # The kernel adds no bias to a float32 result.
    inside = bias if inputs.dtype != torch.float32 else None
    result = torch._scaled_mm(
        rows,
        weight.qdata.t(),
        scale_a=weight.input_scale,
        scale_b=weight.scale,
        bias=inside,
        out_dtype=inputs.dtype,
        use_fast_accum=True,
    )
    if bias is not None and inside is None:
        result = result + bias
    return result.reshape(*inputs.shape[:-1], weight.shape[0])


@dataclass
class StaticFloat8Config(AOBaseConfig):  # type: ignore[misc]
    """For torchao's `quantize_`, whose own static float8 (0.18) wants inputs of one rank."""


@register_quantize_module_handler(StaticFloat8Config)  # type: ignore[untyped-decorator]
def _quantize(module: nn.Module, _config: StaticFloat8Config) -> nn.Module:
    weight: Any = StaticFloat8Tensor.of(module.weight)  # type: ignore[arg-type]
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module
