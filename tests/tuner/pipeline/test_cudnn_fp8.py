"""float8 attention around its kernel: the casts, diffusers' dispatch, one graph. The kernel itself
needs a Hopper GPU (test_gpu_float8.py); here its arithmetic is done in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch.nn import functional

from tests.tuner.pipeline.tiny import FLUX, load, picture
from tuner.pipeline import cudnn_fp8
from tuner.pipeline.attention import set_attention
from tuner.pipeline.cudnn_fp8 import FLOAT8, LARGEST, attention
from tuner.pipeline.scoring import sqnr_db


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **words: Any) -> Any:
    """Over (batch, tokens, heads, width), as diffusers has them."""
    q, k, v = (item.transpose(1, 2).float() for item in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v, **words).transpose(1, 2)


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    """The operator on a CPU. It stays registered: a process has one table of operators."""

    @cudnn_fp8.attend.register_kernel("cpu")
    def _(query: Any, key: Any, value: Any, value_scale: Any, scale: float) -> torch.Tensor:
        assert {query.dtype, key.dtype, value.dtype} == {FLOAT8}
        assert value_scale.shape == (1,)
        found = exact(query, key, value, scale=scale)
        rounded: torch.Tensor = found.clamp(-LARGEST, LARGEST).to(FLOAT8)
        return rounded.contiguous()


def inputs(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, 16).to(dtype) for tokens in (8, 12, 12))
    return query, key, value


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_near_exact_attention_whatever_the_size_of_values(dtype: torch.dtype, size: float) -> None:
    query, key, value = inputs(dtype)
    found = attention(query, key, value * size)
    assert found.dtype == dtype
    assert found.shape == query.shape
    assert sqnr_db(exact(query, key, value * size), found.float()) > 20.0


def test_values_of_zero_give_zero() -> None:
    query, key, value = inputs()
    assert torch.equal(attention(query, key, 0 * value), torch.zeros_like(query))


def test_a_scale_of_its_own() -> None:
    query, key, value = inputs()
    wanted = exact(query, key, value, scale=0.9)
    assert sqnr_db(wanted, attention(query, key, value, scale=0.9).float()) > 20.0


@pytest.mark.parametrize(
    "words",
    [{"attn_mask": torch.ones(8, 12)}, {"dropout_p": 0.1}, {"is_causal": True}],
    ids=["mask", "dropout", "causal"],
)
def test_what_it_does_not_offer_is_refused(words: dict[str, Any]) -> None:
    query, key, value = inputs()
    with pytest.raises(ValueError, match="no mask, no dropout and no causal order"):
        attention(query, key, value, **words)


def test_diffusers_finds_it_by_its_name_and_lists_it_nowhere() -> None:
    name = cudnn_fp8.backend_name()
    assert isinstance(name, AttentionBackendName)
    assert name.value == "cudnn_fp8"
    assert name not in list(AttentionBackendName)
    query, key, value = inputs()
    assert torch.equal(
        dispatch_attention_fn(query, key, value, backend=name), attention(query, key, value)
    )


def test_a_model_uses_it_compiled_or_not() -> None:
    plain, pipe = load(FLUX), load(FLUX)
    set_attention(pipe.transformer, "cudnn_fp8")
    wanted, eager = picture(plain), picture(pipe)
    assert not torch.equal(wanted, eager)
    assert sqnr_db(wanted, eager) > 15.0
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    assert sqnr_db(eager, picture(pipe)) > 15.0


def test_another_model_keeps_its_own_attention() -> None:
    first, second = load(FLUX), load(FLUX)
    wanted = picture(second)
    set_attention(first.transformer, "cudnn_fp8")
    assert torch.equal(picture(second), wanted)
