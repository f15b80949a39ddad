"""What is counted on the meta device, against figures known from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidInput
from registry.inventory import ComponentActivity, ModelInventory, ShapeProfile
from registry.workload import Shape, Workload
from tests.tuner.hub_cache_folder import COMMITS, HUB_ID, commit
from tests.tuner.pipeline.tiny import FLUX, WORKLOAD, load, picture, plan, saved
from tuner import catalog
from tuner.hub_cache import cached_weights
from tuner.models import resolve_model
from tuner.pipeline.components import describe_component
from tuner.pipeline.counting import count_call
from tuner.pipeline.inventory import take_inventory

TERA = 1e12
META = torch.device("meta")


def taken(name: str, *shapes: Shape) -> ModelInventory:
    trained = catalog.entry(name).ships_weights
    spec = resolve_model(name, weights="pretrained" if trained else "random")
    return take_inventory(spec, Workload(shapes=shapes), lambda *_: None)


@cache
def full(name: str) -> ModelInventory:
    width, height = catalog.entry(name).default_resolution
    return taken(name, Shape(height=height, width=width))


def activity(profile: ShapeProfile, component: str) -> ComponentActivity:
    found = profile.activity(component)
    assert found is not None
    return found


def tera(flops: int) -> float:
    return flops / TERA


def test_flux_at_1024() -> None:
    """59.5 TFLOP of linear layers and 14.9 of attention a step, as profiled on an H200."""
    profile = full("flux-dev").profiles[0]
    step = activity(profile, "transformer")
    assert tera(step.linear_flops) == pytest.approx(59.51, abs=0.01)
    assert tera(step.attention_flops) == pytest.approx(14.87, abs=0.01)
    assert step.calls == 1
    hidden_bytes = (4096 + 512) * 3072 * 2
    assert 5 * hidden_bytes < step.activation_peak_bytes < 40 * hidden_bytes
    text = activity(profile, "text_encoder_2")
    assert tera(text.linear_flops) == pytest.approx(4.74, abs=0.01)


def test_sdxl_at_1024() -> None:
    """6 tera multiply-adds for the two pictures of a guided step."""
    profile = full("sdxl").profiles[0]
    step = activity(profile, "unet")
    assert tera(step.linear_flops + step.convolution_flops) == pytest.approx(11.96, abs=0.02)
    assert step.activation_peak_bytes < 2**30
    decoded = activity(profile, "vae")
    assert tera(decoded.convolution_flops) == pytest.approx(9.89, abs=0.02)
    assert 2**30 < decoded.activation_peak_bytes < 3 * 2**30


@pytest.mark.parametrize("name", catalog.names())
def test_shipped_inventories_are_what_would_be_counted(name: str) -> None:
    """Where they differ: `python -m tuner.pipeline.ship tuner/catalog/inventories`."""
    shipped = catalog.shipped_inventory(name)
    assert shipped is not None
    assert full(name) == shipped.model_copy(update={"made_with": full(name).made_with})


def test_every_layer_of_the_denoiser_sees_rows() -> None:
    inventory = full("flux-dev")
    rows = activity(inventory.profiles[0], "transformer").linear_rows
    assert set(rows) == {layer.name for layer in inventory.denoiser.linears}
    assert rows["transformer_blocks.0.attn.to_q"] == 4096
    assert rows["transformer_blocks.0.attn.add_q_proj"] == 512
    assert rows["single_transformer_blocks.0.attn.to_q"] == 4608
    assert rows["transformer_blocks.0.norm1.linear"] == 1


def test_every_shape_of_a_workload_has_a_profile() -> None:
    shapes = (
        Shape(height=64, width=64),
        Shape(height=64, width=128),
        Shape(height=64, width=64, batch_size=3),
        Shape(height=128, width=128, text_tokens=16),
    )
    inventory = taken("tiny-flux", *shapes)
    assert {item.shape for item in inventory.profiles} == set(shapes)
    rows = {
        shape: activity(found, "transformer").linear_rows["single_transformer_blocks.0.attn.to_q"]
        for shape in shapes
        if (found := inventory.profile(shape)) is not None
    }
    assert [rows[shape] for shape in shapes] == [
        256 + 32,
        512 + 32,
        3 * (256 + 32),
        1024 + 16,
    ]


def test_guidance_doubles_the_batch() -> None:
    guided, alone = Shape(height=64, width=64), Shape(height=64, width=64, guidance=False)
    inventory = taken("tiny-sdxl", guided, alone)
    flops = {
        item.shape.guidance: activity(item, "unet").convolution_flops for item in inventory.profiles
    }
    assert flops[True] == 2 * flops[False]


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sdxl"])
def test_tiles_lower_the_peak_from_the_size_where_they_start(name: str) -> None:
    inventory = taken(name, Shape(height=64, width=64), Shape(height=256, width=256))
    small, large = inventory.profiles
    assert small.tiled_vae == activity(small, "vae")
    assert large.tiled_vae is not None
    whole = activity(large, "vae")
    assert large.tiled_vae.activation_peak_bytes < whole.activation_peak_bytes / 2
    assert large.tiled_vae.convolution_flops > whole.convolution_flops


def test_counting_again_gives_the_same() -> None:
    first, second = taken("tiny-flux", *WORKLOAD.shapes), taken("tiny-flux", *WORKLOAD.shapes)
    assert first == second
    assert first.architecture != taken("tiny-sdxl", *WORKLOAD.shapes).architecture


def test_random_weights_are_named_by_their_seed() -> None:
    one = take_inventory(FLUX, WORKLOAD, lambda *_: None)
    other = take_inventory(FLUX.model_copy(update={"seed": 1}), WORKLOAD, lambda *_: None)
    assert one.architecture == other.architecture
    assert one.weights != other.weights


def test_weights_are_named_as_the_hubs_cache_names_them(tmp_path: Path) -> None:
    """What get-plan reads from the cache without torch is what a worker counted from it."""
    folder = saved(FLUX, tmp_path / "saved")
    every = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in every}
    snapshot = commit(tmp_path / "hub", COMMITS[0], files)
    found = cached_weights(resolve_model(HUB_ID), tmp_path / "hub")
    counted = take_inventory(resolve_model(str(snapshot)), WORKLOAD, lambda *_: None)
    assert found is not None
    assert found.digest == counted.weights


def test_what_a_model_offers() -> None:
    flux, sdxl = full("tiny-flux"), full("tiny-sdxl")
    assert flux.denoiser.supports_attention_backend
    assert not sdxl.denoiser.supports_attention_backend
    assert flux.denoiser.supports_qkv_fusion
    assert sdxl.denoiser.supports_qkv_fusion
    assert sdxl.denoiser.has_convolutions
    assert not flux.denoiser.has_convolutions
    vae = flux.vae
    assert vae is not None
    assert vae.supports_tiling
    assert vae.supports_slicing
    assert not vae.supports_qkv_fusion
    assert [item.name for item in flux.text_encoders] == ["text_encoder", "text_encoder_2"]
    blocks = {item.class_name: len(item.names) for item in flux.denoiser.repeated_blocks}
    assert blocks == {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 4}
    assert (flux.resolution_factor, sdxl.resolution_factor) == (4, 2)
    assert (flux.default_steps, flux.default_text_tokens) == (4, 32)


def test_progress_counts_shapes() -> None:
    seen: list[tuple[str, int, int, str]] = []
    shapes = (Shape(height=64, width=64), Shape(height=128, width=64))
    take_inventory(FLUX, Workload(shapes=shapes), lambda *item: seen.append(item))
    assert seen == [("inventory", 1, 2, "64x64"), ("inventory", 2, 2, "64x128")]


def test_a_model_without_a_denoiser(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "MarigoldDepthPipeline", "vae": ["diffusers", "AutoencoderKL"]}'
    )
    (tmp_path / "vae").mkdir()
    load(FLUX).vae.save_config(str(tmp_path / "vae"))
    with pytest.raises(InvalidInput):
        take_inventory(resolve_model(str(tmp_path)), WORKLOAD, lambda *_: None)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 40)
        self.second = nn.Linear(40, 10)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(torch.relu(self.first(value)))
        return found


def counted(module: nn.Module, *args: torch.Tensor) -> Any:
    return count_call(module, module.forward, args, {})[1]


def test_a_chain_by_hand() -> None:
    tally = counted(Chain().to(META), torch.empty(7, 10, device=META))
    assert tally.linear_flops == 2 * 7 * 10 * 40 * 2
    assert tally.linear_rows == {"first": 7, "second": 7}
    assert tally.activation_peak_bytes == 4 * 7 * (10 + 40 + 40)


def test_attention_by_hand() -> None:
    class Attend(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(query, key, value=key)

    query, key = torch.empty(1, 2, 5, 8, device=META), torch.empty(1, 2, 3, 8, device=META)
    tally = counted(Attend(), query, key)
    assert not tally.masked_attention
    assert tally.attention_flops == 2 * (2 * 5 * 3 * 8) * 2
    assert tally.activation_peak_bytes == 4 * (80 + 48 + 80)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_mask_on_attention_is_seen(by_name: bool) -> None:
    class Attend(nn.Module):
        def forward(self, query: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            attention = nn.functional.scaled_dot_product_attention
            if by_name:
                return attention(query, query, query, attn_mask=mask)
            return attention(query, query, query, mask)

    query, mask = torch.empty(1, 2, 5, 8, device=META), torch.empty(5, 5, device=META)
    assert counted(Attend(), query, mask).masked_attention


def test_convolutions_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)).to(META)
    tally = counted(module, torch.empty(2, 3, 4, 4, device=META))
    assert tally.convolution_flops == 2 * (2 * 4 * 4) * 6 * 3 * 9


def test_a_counted_component_still_runs() -> None:
    """Counting leaves no hook and no replaced method behind."""
    pipe = load(FLUX, plan())
    describe_component("transformer", pipe.transformer)
    before = picture(pipe)
    take_inventory(FLUX, WORKLOAD, lambda *_: None)
    assert torch.equal(picture(pipe), before)
    assert "forward" not in vars(pipe.transformer)
