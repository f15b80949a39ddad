"""FLUX's attention around the operator for norm and rotary embedding, which here is diffusers' own
arithmetic; the kernel needs a GPU (test_gpu_float8.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn import functional

from tests.tuner.pipeline.tiny import FLUX, SDXL, load, picture
from tuner.pipeline.fuse import fuse
from tuner.pipeline.norm_rope import FusedFluxAttention, fuse_norm_rope


def reference(
    source: torch.Tensor,
    weight: torch.Tensor,
    text: torch.Tensor | None,
    text_weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    float8: bool,
) -> torch.Tensor:
    def normed(part: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(part.unflatten(-1, (-1, own.shape[0])), own.shape, own, eps)

    whole = normed(source, weight)
    if text is not None and text_weight is not None:
        whole = torch.cat([normed(text, text_weight), whole], dim=1)
    turned: torch.Tensor = apply_rotary_emb(whole, (cos, sin), sequence_dim=1)  # type: ignore[arg-type,assignment]
    return turned.to(torch.float8_e4m3fn) if float8 else turned


@pytest.mark.parametrize("joint", [False, True], ids=["three projections", "fused projections"])
def test_a_model_draws_the_same_picture(joint: bool) -> None:
    plain, fused = load(FLUX), load(FLUX)
    if joint:
        fuse(fused.transformer)
        fuse(plain.transformer)
    fuse_norm_rope(fused.transformer, reference)
    kinds = {type(item.processor) for item in _attentions(fused.transformer)}
    assert kinds == {FusedFluxAttention}
    assert torch.equal(picture(plain), picture(fused))


def test_compiled_it_is_one_graph() -> None:
    pipe = load(FLUX)
    fuse_norm_rope(pipe.transformer, reference)
    wanted = picture(pipe)
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    assert torch.allclose(wanted, picture(pipe), atol=1e-3)


def test_the_backend_is_kept_and_decides_what_the_operator_rounds_to() -> None:
    asked: list[bool] = []

    def noting(*given: Any) -> torch.Tensor:
        *others, float8 = given
        asked.append(float8)
        exact: Any = reference
        return exact(*others, False)  # type: ignore[no-any-return]

    for backend in (None, "cudnn_fp8"):
        pipe = load(FLUX)
        attention = pipe.transformer.transformer_blocks[0].attn
        attention.processor._attention_backend = backend
        fuse_norm_rope(pipe.transformer, noting)
        assert attention.processor._attention_backend == backend
        attention.processor._attention_backend = None
        asked.clear()
        picture(pipe)
        assert (True in asked) == (backend is not None)


def test_without_positions_it_is_diffusers_own() -> None:
    pipe = load(FLUX)
    attention = pipe.transformer.single_transformer_blocks[0].attn
    states = torch.randn(1, 6, attention.query_dim)
    wanted = attention(states)
    fuse_norm_rope(pipe.transformer, _never)
    assert torch.equal(attention(states), wanted)


def test_processors_of_others_are_left() -> None:
    pipe, other = load(FLUX), load(SDXL)
    mine = type("Mine", (type(pipe.transformer.transformer_blocks[0].attn.processor),), {})()
    pipe.transformer.transformer_blocks[0].attn.processor = mine
    fuse_norm_rope(pipe.transformer, reference)
    assert pipe.transformer.transformer_blocks[0].attn.processor is mine
    before = dict(other.unet.attn_processors)
    fuse_norm_rope(other.unet, reference)
    assert dict(other.unet.attn_processors) == before


def _attentions(module: torch.nn.Module) -> list[Any]:
    return [item for item in module.modules() if hasattr(item, "processor")]


def _never(*_: Any) -> torch.Tensor:
    raise AssertionError("asked for an operator")
