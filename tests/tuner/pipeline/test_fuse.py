"""Fused projections: the same pictures, the parts gone, one code path for both ways to load."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from registry.errors import PlanConflict
from tests.tuner.pipeline.tiny import (
    CPU,
    FLUX,
    SDXL,
    difference,
    load,
    picture,
    plan,
    same_weights,
    saved,
)
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.fuse import can_fuse, fuse, is_fused

ROUNDING = 2e-5


def leaf_names(module: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in module.named_modules()}


@pytest.mark.parametrize(
    ("spec", "component"), [(FLUX, "transformer"), (SDXL, "unet")], ids=["flux", "sdxl"]
)
def test_fusing_while_loading_and_on_an_apps_pipeline(spec: Any, component: str) -> None:
    plain, own = load(spec), load(spec)
    fused = load(spec, plan(fuse_qkv=True))
    engine.apply(own, plan(fuse_qkv=True), CPU)
    assert difference(picture(fused), picture(plain)) < ROUNDING
    assert torch.equal(picture(own), picture(fused))
    module = getattr(fused, component)
    assert same_weights(module, getattr(own, component))
    assert is_fused(module)
    assert not is_fused(getattr(plain, component))
    assert {"to_k", "to_v", "add_q_proj"}.isdisjoint(leaf_names(module))
    before = sum(item.numel() for item in getattr(plain, component).parameters())
    assert sum(item.numel() for item in module.parameters()) == before
    assert same_weights(fused.vae, plain.vae)


def test_what_is_fused_says_what_it_replaced() -> None:
    parts = fuse(load(FLUX).transformer)
    assert parts["transformer_blocks.0.attn.to_qkv"] == (
        ("transformer_blocks.0.attn.to_q", 128),
        ("transformer_blocks.0.attn.to_k", 128),
        ("transformer_blocks.0.attn.to_v", 128),
    )
    assert "transformer_blocks.1.attn.to_added_qkv" in parts
    assert "single_transformer_blocks.3.attn.to_qkv" in parts
    assert len(parts) == 2 * 2 + 4


def test_cross_attention_keeps_its_query() -> None:
    unet = load(SDXL).unet
    parts = fuse(unet)
    cross = [name for name in parts if name.endswith("to_kv")]
    assert cross
    for name in cross:
        attention = unet.get_submodule(name.removesuffix(".to_kv"))
        assert hasattr(attention, "to_q")
        assert not hasattr(attention, "to_k")


def test_a_folder_is_read_layer_by_layer_under_fusion_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the parts' names: the whole-component fallback must not be needed."""
    spec = resolve_model(str(saved(SDXL, tmp_path)))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole component was loaded")

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", refuse)
    assert same_weights(load(spec, plan(fuse_qkv=True)).unet, load(SDXL, plan(fuse_qkv=True)).unet)


def test_nothing_happens_where_diffusers_offers_no_fusion() -> None:
    pipe = load(FLUX)
    assert not can_fuse(pipe.vae)
    assert not can_fuse(pipe.text_encoder)
    assert fuse(pipe.text_encoder) == {}


def test_models_that_refuse_fusion_are_a_conflict() -> None:
    unet = load(SDXL).unet
    attention: Any = next(layer for layer in unet.modules() if isinstance(layer, Attention))

    class AddedProcessor:
        pass

    attention.processor = AddedProcessor()
    with pytest.raises(PlanConflict, match=r"QKV fusion of UNet2DConditionModel"):
        fuse(unet)
