"""RMS norm of each head, rotary embedding and a cast in one kernel (Triton).

Inductor makes two or three kernels of it, which read each number up to six times: 84 µs in each of
FLUX's single blocks at 1024² on an H200. Reading and writing once takes a third of that.
"""

from __future__ import annotations

import torch
import triton
from torch.library import triton_op, wrap_triton

tl = triton.language
HEADS_AT_ONCE = 8


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rope(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    source,
    weight,
    cos,
    sin,
    result,
    start,
    tokens,
    all_tokens,
    batch_stride,
    token_stride,
    heads,
    eps,
    block: tl.constexpr,  # type: ignore[name-defined]
    width: tl.constexpr,  # type: ignore[name-defined]
):
    """One token, some heads: `source` (batch, tokens, heads · width) into tokens from `start` on of
    `result` (batch, all_tokens, heads, width). Rounds to source's type where diffusers does."""
    row = tl.program_id(0)
    batch, token = row // tokens, row % tokens
    head = tl.program_id(1) * block + tl.arange(0, block)
    lane = tl.arange(0, width)
    mask = (head < heads)[:, None]
    inside = head[:, None] * width + lane[None, :]
    first = batch.to(tl.int64) * batch_stride + token.to(tl.int64) * token_stride
    given = tl.load(source + first + inside, mask=mask, other=0.0)
    wide = given.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / width + eps)
    wide = wide * scale[:, None] * tl.load(weight + lane).to(tl.float32)[None, :]
    wide = wide.to(given.dtype).to(tl.float32)
    even, odd = tl.split(tl.reshape(wide, (block, width // 2, 2)))
    angle = (start + token) * width + lane
    turn = tl.load(cos + angle).to(tl.float32)
    lift = tl.load(sin + angle).to(tl.float32)
    cos_even, cos_odd = tl.split(tl.reshape(turn, (width // 2, 2)))
    sin_even, sin_odd = tl.split(tl.reshape(lift, (width // 2, 2)))
    turned = tl.join(
        even * cos_even[None, :] - odd * sin_even[None, :],
        odd * cos_odd[None, :] + even * sin_odd[None, :],
    )
    rounded = tl.reshape(turned, (block, width)).to(given.dtype)
    target = (batch.to(tl.int64) * all_tokens + start + token) * heads * width
    tl.store(result + target + inside, rounded.to(result.dtype.element_ty), mask=mask)


@triton_op("tuner::norm_rope", mutates_args={})
def norm_rope(
    source: torch.Tensor,
    weight: torch.Tensor,
    text: torch.Tensor | None,
    text_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    float8: bool,
) -> torch.Tensor:
    """(batch, tokens, heads · width) to (batch, all tokens, heads, width): `text`, normed by its
    own weight, comes first where there is any. Widths are powers of two; `cos` and `sin` are
    (all tokens, width), a number for each of a pair. float8 (e4m3) or source's type out."""
    width = weight.shape[0]
    heads = source.shape[2] // width
    start = 0 if text is None else text.shape[1]
    all_tokens = start + source.shape[1]
    result = torch.empty(
        (source.shape[0], all_tokens, heads, width),
        device=source.device,
        dtype=torch.float8_e4m3fn if float8 else source.dtype,
    )
    parts = [(source, weight, start)]
    if text is not None and text_weight is not None:
        parts.append((text, text_weight, 0))
    for part, part_weight, at in parts:
        grid = (part.shape[0] * part.shape[1], triton.cdiv(heads, HEADS_AT_ONCE))
        wrap_triton(_norm_rope)[grid](
            part,
            part_weight,
            cos,
            sin,
            result,
            at,
            part.shape[1],
            all_tokens,
            part.stride(0),
            part.stride(1),
            heads,
            eps,
            block=HEADS_AT_ONCE,
            width=width,
            num_warps=2,
        )
    return result
