"""Schemes on a CPU: which layers they touch, what they leave, how far the numbers move."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchao.quantization
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import ComponentPlan, LayerScheme, Quantization
from tests.tuner.pipeline.tiny import FLUX, SDXL, load, picture, plan, quantized
from tuner.layers import component_bytes, quantized_layers
from tuner.pipeline.components import describe_component
from tuner.pipeline.quantize import (
    is_quantized,
    layer_types,
    quantize_layer,
    scheme_config,
    scheme_of,
)
from tuner.pipeline.scoring import sqnr_db
from tuner.pipeline.skeleton import build_skeleton

CPU_SCHEMES: tuple[LayerScheme, ...] = ("int8_weight_only", "int8_dynamic", "float8_weight_only")
DYNAMIC_FLOAT8: tuple[LayerScheme, ...] = ("float8_dynamic_tensor", "float8_dynamic_row")
TENSORS = {"int8_weight_only": "Int8Tensor", "int8_dynamic": "Int8Tensor"}


@pytest.fixture(scope="module")
def unquantized() -> Any:
    return load(FLUX)


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: item for name, item in module.named_modules() if isinstance(item, nn.Linear)}


def touched(module: nn.Module) -> set[str]:
    return {name for name, layer in linears(module).items() if is_quantized(layer)}


@pytest.mark.parametrize("scheme", CPU_SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_schemes_that_run_on_a_cpu(scheme: LayerScheme, dtype: str, unquantized: Any) -> None:
    part = ComponentPlan(quantization=Quantization(scheme=scheme))
    pipe = load(FLUX, plan({"transformer": part, "text_encoder_2": part}, dtype=dtype))
    tensor = f"Linear/{TENSORS.get(scheme, 'Float8Tensor')}"
    for component in ("transformer", "text_encoder_2"):
        module = getattr(pipe, component)
        assert layer_types(module)[tensor] == len(linears(module))
    assert layer_types(pipe.vae) == layer_types(unquantized.vae.to(getattr(torch, dtype)))
    unquantized.vae.to(torch.float32)
    wanted = picture(unquantized)
    assert not torch.equal(picture(pipe).float(), wanted)
    assert sqnr_db(wanted, picture(pipe)) > 15.0


@pytest.mark.parametrize("scheme", CPU_SCHEMES)
def test_quantized_while_loading_equals_quantized_afterwards(
    scheme: LayerScheme, unquantized: Any
) -> None:
    during = load(FLUX, quantized("transformer", scheme)).transformer
    after = load(FLUX).transformer
    with torch.no_grad():
        for name, layer in linears(after).items():
            quantize_layer(name, layer, scheme)
    for name, layer in linears(after).items():
        other = during.get_submodule(name)
        assert torch.equal(layer.weight.dequantize(), other.weight.dequantize()), name


def test_patterns_and_sizes_leave_layers_alone() -> None:
    options = {"skip": ("norm*.linear", "*.norm*.linear", "proj_out"), "min_features": 64}
    module = load(FLUX, quantized("transformer", "int8_weight_only", **options)).transformer
    left = set(linears(module)) - touched(module)
    small = {name for name, item in linears(module).items() if min(item.weight.shape) < 64}
    assert "x_embedder" in small
    assert {"proj_out", "transformer_blocks.0.norm1.linear"} <= left
    assert "norm_out.linear" in left
    assert left == small | {name for name in linears(module) if "norm" in name} | {"proj_out"}


@pytest.mark.parametrize(
    ("shape", "scheme", "wanted"),
    [
        ((32, 48), "float8_dynamic_row", True),
        ((32, 40), "float8_dynamic_row", False),
        ((40, 32), "float8_dynamic_tensor", False),
        ((32, 40), "float8_weight_only", True),
        ((32, 40), "int8_dynamic", True),
        ((32, 48), "none", False),
    ],
)
def test_float8_tiles_need_multiples_of_16(
    shape: tuple[int, int], scheme: LayerScheme, wanted: bool
) -> None:
    layer = nn.Linear(*shape)
    found = scheme_of("to_q", layer, Quantization(scheme=scheme))
    assert found == (scheme if wanted else "none")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((128, 128), "none"), ((128, 256), "float8_dynamic_tensor")],
    ids=["taken for block-scaled", "per tensor"],
)
def test_a_shape_that_torchao_mistakes_is_left_alone(
    shape: tuple[int, int], expected: LayerScheme
) -> None:
    layer = nn.Linear(*shape)
    assert scheme_of("layer", layer, Quantization(scheme="float8_dynamic_tensor")) == expected
    assert scheme_of("layer", layer, Quantization(scheme="int8_dynamic")) == "int8_dynamic"


def test_torchao_still_mistakes_that_shape() -> None:
    """Once this fails, the exception in tuner/layers.py can go."""
    from torchao.float8.inference import _is_128_128_scaled
    from torchao.quantization import Float8Tensor, PerTensor

    weight = Float8Tensor.from_hp(torch.randn(128, 128), granularity=PerTensor())
    assert _is_128_128_scaled(weight)


def test_patterns_are_whole_names_and_know_case() -> None:
    layer = nn.Linear(16, 16)
    for pattern, wanted in (("to_q", False), ("to", True), ("TO_Q", True), ("to_[qk]", False)):
        plan_ = Quantization(scheme="int8_weight_only", skip=(pattern,))
        assert (scheme_of("to_q", layer, plan_) != "none") is wanted, pattern


@pytest.mark.parametrize("scheme", DYNAMIC_FLOAT8)
def test_schemes_that_need_a_gpu_are_invalid_here(scheme: LayerScheme) -> None:
    with pytest.raises(InvalidPlan, match=rf"cannot quantize .* under '{scheme}'.*capability"):
        load(FLUX, quantized("transformer", scheme))


def test_a_layer_that_torchao_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchao.quantization, "quantize_", lambda *_, **__: None)
    with pytest.raises(InvalidPlan, match=r"left 'to_q' of shape \(8, 4\) unquantized"):
        quantize_layer("to_q", nn.Linear(4, 8), "int8_weight_only")


@pytest.mark.parametrize("scheme", ["float8_dynamic_row", "float8_dynamic_tensor"])
@pytest.mark.parametrize("empty", ["one row", "all"])
def test_rows_of_zeros_stay_zeros(scheme: LayerScheme, empty: str) -> None:
    """SDXL's empty negative prompt is zeros: torchao's own default makes NaN of them."""
    from torchao.quantization import Float8Tensor

    config: Any = scheme_config(scheme)
    rows = torch.randn(4, 64, dtype=torch.bfloat16)
    rows[1 if empty == "one row" else slice(None)] = 0
    granularity = config.granularity[0]

    def packed(**floor: Any) -> torch.Tensor:
        kept: torch.Tensor = Float8Tensor.from_hp(rows, granularity=granularity, **floor)
        return kept.dequantize()

    found = packed(hp_value_lb=config.activation_value_lb)
    assert torch.isfinite(found).all()
    assert not found[1].any()
    if scheme == "float8_dynamic_row" or empty == "all":
        assert not torch.isfinite(packed()).all(), "torchao has mended it: drop the floor"


def test_inductors_global_settings_stay_as_they_were() -> None:
    from torch._inductor import config

    before = {
        name: getattr(config, name)
        for name in ("coordinate_descent_tuning", "force_fuse_int_mm_with_mul")
    }
    quantize_layer("x", nn.Linear(16, 16), "int8_dynamic")
    assert {name: getattr(config, name) for name in before} == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_layer_types_name_class_and_weight() -> None:
    unet = load(SDXL, quantized("unet", "float8_weight_only")).unet
    types = layer_types(unet)
    assert types["Linear/Float8Tensor"] == len(linears(unet))
    assert types["Conv2d/float32"] == sum(isinstance(m, nn.Conv2d) for m in unet.modules())
    assert "Linear/float32" not in types


def inner_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the tensors that a torchao tensor consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(inner_bytes(getattr(tensor, name)) for name in names)


MIXED: dict[str, LayerScheme] = {
    "*.attn.to_*": "int8_dynamic",
    "*.attn.to_q": "float8_weight_only",
    "transformer_blocks.*.ff.net.*": "int8_weight_only",
}


def test_each_layer_of_a_mixed_plan_takes_its_own_scheme() -> None:
    module = load(FLUX, quantized("transformer", "mixed", layers=MIXED)).transformer
    made = {name: type(layer.weight).__name__ for name, layer in linears(module).items()}
    assert made["transformer_blocks.0.attn.to_q"] == "Float8Tensor"
    assert made["transformer_blocks.0.attn.to_k"] == "Int8Tensor"
    assert made["transformer_blocks.0.ff.net.2"] == "Int8Tensor"
    assert made["transformer_blocks.0.ff_context.net.2"] == "Parameter"
    weight_only = module.get_submodule("transformer_blocks.0.ff.net.2").weight
    dynamic = module.get_submodule("transformer_blocks.0.attn.to_k").weight
    assert weight_only.act_quant_kwargs is None
    assert dynamic.act_quant_kwargs is not None


def test_a_mixed_load_equals_one_fqn_config_of_torchao() -> None:
    """Layer by layer as the engine loads, or all at once as torchao names layers."""
    during = load(FLUX, quantized("transformer", "mixed", layers=MIXED)).transformer
    after = load(FLUX).transformer
    chosen = Quantization(scheme="mixed", layers=MIXED)
    schemes = {name: scheme_of(name, layer, chosen) for name, layer in linears(after).items()}
    configs = {name: scheme_config(item) for name, item in schemes.items() if item != "none"}
    config = torchao.quantization.FqnToConfig(OrderedDict(configs))
    torchao.quantization.quantize_(after, config, filter_fn=None)
    assert layer_types(during) == layer_types(after)
    for name, layer in linears(after).items():
        if is_quantized(layer):
            other = during.get_submodule(name)
            assert torch.equal(layer.weight.dequantize(), other.weight.dequantize()), name


@pytest.mark.parametrize(
    "chosen",
    [
        *(
            Quantization(scheme=item, skip=("norm*.linear", "*to_k"), min_features=64)
            for item in CPU_SCHEMES
        ),
        Quantization(scheme="mixed", layers=MIXED, skip=("*to_k",), min_features=64),
    ],
    ids=[*CPU_SCHEMES, "mixed"],
)
def test_what_the_torch_free_side_predicts_is_what_is_made(chosen: Quantization) -> None:
    """`tuner.layers` names the layers and their bytes without torch: both must agree."""
    inventory = describe_component(
        "transformer", build_skeleton(FLUX, torch.float32).modules["transformer"]
    )
    predicted = quantized_layers(inventory, chosen)
    module = load(FLUX, plan({"transformer": ComponentPlan(quantization=chosen)})).transformer
    assert {layer.name for layer in predicted} == touched(module)
    made = sum(inner_bytes(item.data) for item in module.parameters())
    made += sum(inner_bytes(item) for item in module.buffers())
    assert component_bytes(inventory, predicted, chosen, "float32") == made
