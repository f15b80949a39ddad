"""What kind of work a kernel, a copy or an operator does, by the name that a trace gives it.

Names are those of cuBLAS and cuBLASLt (nvjet, xmma, cutlass), cuDNN, FlashAttention, SageAttention,
Triton as Inductor names it, and ATen, as torch 2.11 to 2.13 show them on capabilities 8.0 to 9.0.
"""

from __future__ import annotations

import re
from typing import Literal

from tuner.protocol import TracedOp

WorkClass = Literal[
    "matmul",
    "attention",
    "convolution",
    "normalisation",
    "elementwise",
    "copies",
    "overhead",
    "other",
]

Table = tuple[tuple[WorkClass, re.Pattern[str]], ...]


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


KERNELS: Table = (
    # Inductor's own fusions, whatever they are named after: a product or a convolution in such a
    # name was done elsewhere, and this is what follows it.
    ("elementwise", _pattern(r"triton_(poi|red|per|for|mix)_fused")),
    (
        "attention",
        _pattern(
            r"_sdpa_",
            r"flash.?fwd",
            r"flash_?attn",
            r"flash.*fprop",
            r"fmha",
            r"flex_attention",
            r"attention",
            r"attn_kernel",
            r"(?<![a-z])_?attn_fwd",
            r"softmax",
        ),
    ),
    (
        "convolution",
        _pattern(
            r"fprop",
            r"implicit_(gemm|convolve)",
            r"conv\dd",
            r"_conv_",
            r"convolution",
            r"convolve",
            r"winograd",
            r"im2col",
            r"nchwtonhwc|nhwctonchw",
            r"cudnn::.*conv",
        ),
    ),
    (
        "matmul",
        _pattern(
            r"nvjet",
            r"gemm",
            r"gemv",
            r"triton_tem_fused_\w*(mm|linear)",
            r"triton_mm",
            r"cutlass(::|_)",
            r"_scaled_mm",
            r"splitk_?reduce",
            r"(?<![a-z])cublas",
            r"dot_kernel",
        ),
    ),
    (
        "normalisation",
        _pattern(r"(layer|group|rms|batch)_?norm", r"rowwisemoments", r"computefusedparams"),
    ),
    (
        "elementwise",
        _pattern(
            r"elementwise",
            r"reduce_kernel",
            r"quant",
            r"triton_",
            r"at::native::",
            r"at_cuda_detail::|cub::",
            r"copy|cat_?array|memset|fill",
        ),
    ),
)
"""The first that is found in a kernel's name says its class. A softmax of its own is what attention
without a fused kernel leaves of itself."""

OPERATORS: Table = (
    ("elementwise", _pattern(r"CompiledFxGraph", r"graph_\d+_\w*fused")),
    ("attention", _pattern(r"scaled_dot_product|flash_attention|softmax")),
    ("convolution", _pattern(r"conv(olution|\dd)")),
    (
        "matmul",
        _pattern(
            r"::_?(\w*addmm\w*|int_mm|scaled_mm|mm|bmm|baddbmm|linear\w*|matmul|einsum|dot)\b"
        ),
    ),
    ("matmul", _pattern(r"weight_int\dpack_mm|_linear_pointwise|mkl_linear|qlinear")),
    ("normalisation", _pattern(r"_norm|layernorm")),
    (
        "overhead",
        _pattern(
            r"::_?(view\w*|reshape\w*|as_strided|transpose|t|permute|slice|select|narrow|chunk)$",
            r"::(split\w*|unbind|flatten|unflatten|squeeze|unsqueeze|expand\w*|empty\w*|detach)$",
            r"::(resolve_conj|resolve_neg|resize_|result_type|lift_fresh|alias|item|is_nonzero)$",
            r"^(Torch|AOT|Pregraph|PyTorch)",
        ),
    ),
    ("elementwise", _pattern(r"::")),
)
"""The same for what operators a CPU ran, each without those it calls."""


def work_class(op: TracedOp) -> WorkClass:
    """ "other" where no pattern knows the name."""
    if op.category == "gpu_memcpy":
        return "copies" if "DtoD" not in op.name else "elementwise"
    if op.category == "gpu_memset":
        return "elementwise"
    table = OPERATORS if op.category == "cpu_op" else KERNELS
    return next((kind for kind, pattern in table if pattern.search(op.name)), "other")
