"""Float8 at scale one, on a CPU: torch multiplies float8 there too, slowly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from registry.plan import ComponentPlan, LayerScheme, Quantization
from tests.tuner.pipeline.tiny import FLUX, load, picture, plan
from tuner.layers import component_bytes, quantized_layers
from tuner.pipeline.components import describe_component
from tuner.pipeline.quantize import is_quantized, layer_types, quantize_layer
from tuner.pipeline.scoring import sqnr_db
from tuner.pipeline.static_float8 import LARGEST, StaticFloat8Tensor

SCHEME: LayerScheme = "float8_static_tensor"


def layers(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """One quantized, and what it was made of."""
    torch.manual_seed(0)
    exact = nn.Linear(64, 48, bias=bias).to(dtype).requires_grad_(False)
    made = copy.deepcopy(exact)
    quantize_layer("layer", made, SCHEME)
    return made, exact


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64)], ids=str)
def test_a_layer_stays_near_itself(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    made, exact = layers(dtype, bias)
    inputs = torch.randn(shape).to(dtype)
    found = made(inputs)
    assert found.shape == (*shape[:-1], 48)
    assert found.dtype == dtype
    assert sqnr_db(exact(inputs), found) > 24.0


def test_large_inputs_are_clamped_and_small_ones_lose_bits() -> None:
    made, _ = layers(torch.float32)
    at_most = made(torch.full((1, 64), LARGEST))
    assert torch.equal(made(torch.full((1, 64), 100 * LARGEST)), at_most)
    assert torch.equal(made(torch.full((1, 64), 1e-4)), made(torch.zeros(1, 64)))


def test_what_is_not_a_number_stays_so() -> None:
    made, _ = layers(torch.bfloat16)
    inputs = torch.zeros(2, 64, dtype=torch.bfloat16)
    inputs[0, 0] = float("nan")
    assert made(inputs)[0].isnan().all()
    assert made(inputs)[1].isfinite().all()


def test_a_weight_of_zeros() -> None:
    weight = StaticFloat8Tensor.of(torch.zeros(16, 32))
    assert torch.equal(weight.dequantize(), torch.zeros(16, 32))


def test_compiled_in_one_graph_it_gives_the_same() -> None:
    made, _ = layers(torch.bfloat16)
    inputs = torch.randn(4, 64).to(torch.bfloat16)
    compiled = torch.compile(made, fullgraph=True)
    assert torch.equal(compiled(inputs), made(inputs))


def test_its_key_of_compiled_code_tells_layouts_apart_and_not_numbers() -> None:
    def key(weight: torch.Tensor) -> str:
        made = StaticFloat8Tensor.of(weight)
        assert isinstance(made, StaticFloat8Tensor)
        return made._stable_hash_for_caching()

    assert key(torch.ones(16, 32)) == key(torch.zeros(16, 32))
    assert key(torch.ones(16, 32)) != key(torch.ones(32, 16))
    assert key(torch.ones(16, 32)) != key(torch.ones(16, 32, dtype=torch.bfloat16))


def test_a_whole_model_keeps_its_picture_and_weighs_what_is_predicted() -> None:
    quantization = Quantization(scheme=SCHEME, skip=("*embed*", "norm_out*", "proj_out"))
    part = ComponentPlan(quantization=quantization)
    pipe = load(FLUX, plan({"transformer": part}, dtype="bfloat16"))
    exact = load(FLUX, plan(dtype="bfloat16"))
    denoiser = describe_component("transformer", exact.transformer)
    touched = quantized_layers(denoiser, quantization)
    assert layer_types(pipe.transformer)["Linear/StaticFloat8Tensor"] == len(touched) > 0
    assert all(is_quantized(pipe.transformer.get_submodule(item.name)) for item in touched)
    held = [*pipe.transformer.parameters(), *pipe.transformer.buffers()]
    assert sum(map(_bytes, held)) == component_bytes(denoiser, touched, quantization, "bfloat16")
    assert sqnr_db(picture(exact).float(), picture(pipe).float()) > 10.0


def _bytes(tensor: torch.Tensor) -> int:
    if isinstance(tensor.data, StaticFloat8Tensor):
        return sum(_bytes(getattr(tensor, name)) for name in StaticFloat8Tensor.tensor_data_names)
    return tensor.numel() * tensor.element_size()


def test_inputs_reach_the_kernel_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's `proj_in` is given channels behind pixels when one picture is made without guidance,
    and the kernel of a GPU refuses rows that are not."""
    made, exact = layers(torch.bfloat16)
    multiply, strides = torch._scaled_mm, []

    def noting(rows: torch.Tensor, *given: Any, **words: Any) -> torch.Tensor:
        strides.append(rows.stride())
        return multiply(rows, *given, **words)

    monkeypatch.setattr(torch, "_scaled_mm", noting)
    inputs = torch.randn(1, 64, 6).to(torch.bfloat16).permute(0, 2, 1)
    assert sqnr_db(exact(inputs), made(inputs)) > 24.0
    assert strides == [(64, 1)]
