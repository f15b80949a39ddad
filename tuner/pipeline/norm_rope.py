"""FLUX's attention with norm and rotary embedding of queries and keys as one operator each.

What is computed, and where it is rounded, is diffusers' own; the operator is given, so that this
needs no kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

NormRope = Callable[..., torch.Tensor]
FLOAT8_BACKEND = "cudnn_fp8"
LEAST_WIDTH = 16


class FusedFluxAttention(FluxAttnProcessor):
    """A processor for diffusers' FluxAttention. For float8 attention the operator rounds queries
    and keys to float8 as well."""

    def __init__(self, norm_rope: NormRope, backend: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._norm_rope = norm_rope
        self._attention_backend = backend
        self._float8 = str(getattr(backend, "value", backend)) == FLOAT8_BACKEND

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if attention_mask is not None or image_rotary_emb is None:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        query, key, value = _projected(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        text_query = text_key = text_query_weight = text_key_weight = None
        if encoder_hidden_states is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            text = _projected(attn, encoder_hidden_states, "to_added_qkv", names)
            text_query, text_key, text_value = text
            text_query_weight, text_key_weight = attn.norm_added_q.weight, attn.norm_added_k.weight
            value = torch.cat([text_value, value], dim=1)
        query = self._turned(attn.norm_q, query, text_query, text_query_weight, image_rotary_emb)
        key = self._turned(attn.norm_k, key, text_key, text_key_weight, image_rotary_emb)
        value = value.unflatten(-1, (-1, attn.head_dim))
        found = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        found = found.flatten(2, 3).to(value.dtype)
        if encoder_hidden_states is None:
            return found
        of_text, of_image = found.split_with_sizes(
            [encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1
        )
        of_image = attn.to_out[1](attn.to_out[0](of_image.contiguous()))
        return of_image, attn.to_add_out(of_text.contiguous())

    def _turned(
        self,
        norm: Any,
        source: torch.Tensor,
        text: torch.Tensor | None,
        text_weight: torch.Tensor | None,
        angles: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        cos, sin = angles
        return self._norm_rope(
            source, norm.weight, text, text_weight, cos, sin, norm.eps, self._float8
        )


def _projected(attn: Any, states: torch.Tensor, fused: str, parts: tuple[str, str, str]) -> Any:
    if attn.fused_projections:
        return getattr(attn, fused)(states).chunk(3, dim=-1)
    return tuple(getattr(attn, part)(states) for part in parts)


def fuse_norm_rope(module: nn.Module, norm_rope: NormRope) -> None:
    """Every attention of FLUX inside whose processor is diffusers' own and whose heads the operator
    takes; all others are left. After the attention backend was chosen."""
    for layer in module.modules():
        processor: Any = getattr(layer, "processor", None)
        if type(processor) is FluxAttnProcessor and _is_taken(layer):
            backend = processor._attention_backend
            layer.processor = FusedFluxAttention(norm_rope, backend)  # type: ignore[assignment]


def _is_taken(attn: Any) -> bool:
    width = attn.head_dim
    affine = attn.norm_q.weight is not None and attn.norm_k.weight is not None
    return bool(affine and width >= LEAST_WIDTH and width & (width - 1) == 0)
