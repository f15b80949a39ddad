from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.inventory import LinearLayer
from registry.plan import LayerScheme, Quantization
from tests.tuner.flux import flux, quantization, shipped
from tuner.layers import (
    LayerTable,
    block_groups,
    component_bytes,
    few_row_layers,
    is_quantized,
    name_patterns,
    quantized_layer_bytes,
    quantized_layers,
)

QUANTIZED: tuple[LayerScheme, ...] = (
    "int8_weight_only",
    "int8_dynamic",
    "float8_weight_only",
    "float8_dynamic_tensor",
    "float8_dynamic_row",
)


def layer(name: str = "block.0.linear", inside: int = 1024, outside: int = 1024) -> LinearLayer:
    return LinearLayer(name=name, in_features=inside, out_features=outside, bias=True)


def test_weights_of_flux_are_what_they_were_measured_to_be() -> None:
    """Published for the transformer alone: 22.2, 11.1 and 14.2 GiB."""
    transformer = flux().denoiser
    sizes = {
        key: component_bytes(transformer, quantized_layers(transformer, chosen), chosen, "bfloat16")
        / 2**30
        for key, chosen in {
            "bf16": quantization("none"),
            "row": quantization("float8_dynamic_row"),
            "row light": quantization("float8_dynamic_row", light=True),
        }.items()
    }
    assert sizes["bf16"] == pytest.approx(22.17, abs=0.01)
    assert sizes["row"] == pytest.approx(11.1, abs=0.1)
    assert sizes["row light"] == pytest.approx(14.2, abs=0.1)


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_what_torchao_takes_for_block_scaled_is_left_alone(scheme: LayerScheme) -> None:
    """Exactly that shape, under exactly that scheme."""
    chosen = Quantization(scheme=scheme)
    is_tensor = scheme == "float8_dynamic_tensor"
    assert is_quantized(layer(inside=128, outside=128), chosen) is not is_tensor
    assert is_quantized(layer(inside=128, outside=256), chosen)
    assert is_quantized(layer(inside=256, outside=128), chosen)
    mixed = Quantization(scheme="mixed", layers={"block.*": scheme})
    assert is_quantized(layer(inside=128, outside=128), mixed) is not is_tensor


def test_modulation_layers_are_those_that_see_one_row_a_picture() -> None:
    names = few_row_layers(flux(), "transformer")
    assert "transformer_blocks.18.norm1_context.linear" in names
    assert "transformer_blocks.0.attn.to_q" not in names
    elements = {item.name: item.weight_elements for item in flux().denoiser.linears}
    assert sum(elements[name] for name in names) == pytest.approx(3.3e9, rel=0.02)


def test_patterns_stand_for_numbered_names() -> None:
    names = frozenset({"blocks.0.norm.linear", "blocks.11.norm.linear", "proj_1"})
    assert name_patterns(names) == ("blocks.*.norm.linear", "proj_1")
    every = few_row_layers(flux(), "transformer")
    patterns = name_patterns(every)
    assert len(patterns) < 15
    matched = {
        item.name
        for item in flux().denoiser.linears
        if any(fnmatchcase(item.name, pattern) for pattern in patterns)
    }
    assert matched == every


@pytest.mark.parametrize(
    ("inside", "outside", "scheme", "touched"),
    [
        (1024, 1024, "none", False),
        (1024, 1024, "int8_dynamic", True),
        (1024, 1000, "float8_weight_only", True),
        (1024, 1000, "float8_dynamic_row", False),
        (1000, 1024, "float8_dynamic_tensor", False),
        (1024, 512, "int8_weight_only", True),
    ],
)
def test_float8_arithmetic_takes_multiples_of_16(
    inside: int, outside: int, scheme: LayerScheme, touched: bool
) -> None:
    assert is_quantized(layer("x", inside, outside), Quantization(scheme=scheme)) is touched


def test_small_and_skipped_layers_are_left_alone() -> None:
    wide = Quantization(scheme="int8_dynamic", min_features=1024)
    assert is_quantized(layer("x", 1024, 1024), wide)
    assert not is_quantized(layer("x", 4096, 1023), wide)
    skipping = Quantization(scheme="int8_dynamic", skip=("*norm*.linear", "proj_out"))
    assert not is_quantized(layer("blocks.3.norm1.linear"), skipping)
    assert not is_quantized(layer("proj_out"), skipping)
    assert is_quantized(layer("blocks.3.proj_out"), skipping)


@given(
    st.lists(st.text("ab.*?[]1", min_size=1, max_size=6), max_size=4), st.text("ab.1", max_size=8)
)
def test_patterns_match_as_fnmatch_does(patterns: list[str], name: str) -> None:
    chosen = Quantization(scheme="int8_dynamic", skip=tuple(patterns))
    expected = not any(fnmatchcase(name, pattern) for pattern in chosen.skip)
    assert is_quantized(layer(name), chosen) is expected


def test_a_table_answers_like_the_function() -> None:
    table = LayerTable()
    for scheme in (*QUANTIZED, *QUANTIZED):
        chosen = quantization(scheme)
        for component in flux().components:
            changed = tuple(item for item in component.linears if is_quantized(item, chosen))
            assert table.quantized(component, chosen) == changed
            assert quantized_layers(component, chosen) == changed


def test_block_groups_are_members_of_the_top_levels_lists() -> None:
    groups = block_groups(flux().denoiser)
    assert len(groups) == 57
    assert groups["transformer_blocks.7"] == pytest.approx(339_831_296, rel=1e-3)
    assert groups["single_transformer_blocks.0"] == pytest.approx(141_591_808, rel=1e-3)
    assert block_groups(flux().component("text_encoder_2")) == {}
    unet = block_groups(shipped("sdxl").denoiser)
    assert {"down_blocks.2", "up_blocks.0"} <= set(unet)
    assert max(unet.values()) > 0.3 * shipped("sdxl").denoiser.elements


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_packed_bytes_are_torchaos_own(scheme: LayerScheme) -> None:
    torch = pytest.importorskip("torch")
    inside, outside = 96, 64
    weight = torch.randn(outside, inside, dtype=torch.bfloat16)
    packed = _packed(weight, scheme)
    names, _ = packed.__tensor_flatten__()
    parts = [getattr(packed, name) for name in names]
    seen = sum(part.numel() * part.element_size() for part in parts)
    assert seen == quantized_layer_bytes(layer("x", inside, outside), scheme)


def _packed(weight: Any, scheme: LayerScheme) -> Any:
    """A weight as torchao stores it; float8 arithmetic cannot be configured without a GPU."""
    import torch
    from torchao.quantization import Float8Tensor, PerRow, PerTensor, quantize_

    if scheme.startswith("float8_dynamic"):
        granularity = PerTensor() if scheme.endswith("tensor") else PerRow()
        return Float8Tensor.from_hp(
            weight, float8_dtype=torch.float8_e4m3fn, granularity=granularity
        )
    from tuner.pipeline.quantize import scheme_config

    module = torch.nn.Sequential(
        torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    )
    quantize_(module, scheme_config(scheme))
    return module[0].weight
