"""Float8 at scale one, float8 attention and GELU without tanh on a GPU, at FLUX's sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tuner.pipeline.quantize import quantize_layer
from tuner.pipeline.scoring import sqnr_db

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS, WIDTH = 24, 128


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


float8 = pytest.mark.skipif(_capability() < (8, 9), reason="needs float8 arithmetic")
hopper = pytest.mark.skipif(_capability()[0] != 9, reason="needs a Hopper GPU")


def numbers(*shape: int, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return size * torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)


@float8
@pytest.mark.parametrize("rows", [(1,), (1, 4608), (2, 512)], ids=str)
def test_a_static_layer_is_near_the_exact_one(rows: tuple[int, ...]) -> None:
    exact = nn.Linear(3072, 12288, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    made = copy.deepcopy(exact)
    quantize_layer("layer", made, "float8_static_tensor")
    inputs = numbers(*rows, 3072)
    wanted, compiled = exact(inputs), torch.compile(made, fullgraph=True)
    for found in (made(inputs), compiled(inputs)):
        assert sqnr_db(wanted.float(), found.float()) > 24.0


@float8
def test_a_static_layer_streams_and_moves() -> None:
    made = nn.Linear(256, 512, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    quantize_layer("layer", made, "float8_static_tensor")
    inputs = numbers(3, 256)
    wanted = made(inputs)
    assert torch.equal(made.to("cpu").to("cuda")(inputs), wanted)


def _exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    q, k, v = (item.transpose(1, 2).float() for item in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@hopper
@pytest.mark.parametrize("size", [1.0, 0.01, 100.0])
@pytest.mark.parametrize("tokens", [(1024, 1024), (1000, 1000), (512, 77)], ids=str)
def test_float8_attention_is_near_the_exact_one(tokens: tuple[int, int], size: float) -> None:
    pytest.importorskip("cudnn")
    from tuner.pipeline.cudnn_fp8 import attention

    query, key = numbers(2, tokens[0], HEADS, WIDTH), numbers(2, tokens[1], HEADS, WIDTH)
    value = numbers(2, tokens[1], HEADS, WIDTH, size=size)
    found = attention(query, key, value)
    assert found.shape == query.shape
    assert sqnr_db(_exact(query, key, value), found.float()) > 20.0
    compiled = torch.compile(attention, fullgraph=True)
    assert sqnr_db(_exact(query, key, value), compiled(query, key, value).float()) > 20.0


@hopper
def test_float8_attention_reads_slices_of_a_joint_projection() -> None:
    pytest.importorskip("cudnn")
    from tuner.pipeline.cudnn_fp8 import attention

    joint = numbers(1, 640, 3, HEADS, WIDTH)
    query, key, value = joint.unbind(2)
    assert sqnr_db(_exact(query, key, value), attention(query, key, value).float()) > 20.0


@hopper
def test_float8_attention_runs_inside_a_cuda_graph() -> None:
    pytest.importorskip("cudnn")
    from tuner.pipeline.cudnn_fp8 import attention

    query, key, value = numbers(3, 1, 768, HEADS, WIDTH).unbind(0)
    wanted = attention(query, key, value)
    found = _captured(lambda: attention(query, key, value))
    assert torch.equal(found, wanted)


def _captured(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    graph.replay()
    torch.cuda.synchronize()
    return found.clone()


@float8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("texts", [0, 77])
def test_norm_and_rotary_embedding_round_as_diffusers_does(texts: int, dtype: torch.dtype) -> None:
    from tests.tuner.pipeline.test_norm_rope import reference
    from tuner.pipeline.norm_rope_kernel import norm_rope

    heads, width = 20, 64
    joint = numbers(2, 1000, 3 * heads * width).to(dtype)
    source = joint[..., : heads * width]
    text = numbers(2, texts, heads * width).to(dtype) if texts else None
    weights = [1 + 0.3 * numbers(width).to(dtype), 1 - 0.3 * numbers(width).to(dtype)]
    angles = torch.linspace(0, 50, (texts + 1000) * width // 2, device="cuda").reshape(-1, 32)
    cos, sin = (item.repeat_interleave(2, 1) for item in (angles.cos(), angles.sin()))
    given = (source, weights[0], text, weights[1] if texts else None, cos, sin, 1e-6)
    wanted = reference(*given, False)
    # Every compiled function of this kind is a version of one of torch's own.
    torch._dynamo.reset()
    for call in (norm_rope, torch.compile(norm_rope, fullgraph=True)):
        found = call(*given, False)
        assert sqnr_db(wanted.float(), found.float()) > 45.0
        assert torch.equal(found.to(torch.float8_e4m3fn).float(), call(*given, True).float())
