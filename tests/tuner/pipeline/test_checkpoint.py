"""Safetensors in the layouts that diffusers, transformers and the hub have, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from registry.errors import InvalidInput
from registry.plan import ComponentPlan
from tests.tuner.pipeline.tiny import CPU, FLUX, WORKLOAD, load, same_weights, saved
from tuner.models import resolve_model
from tuner.pipeline.checkpoint import tensor_files
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.load import materialise
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.weights import component_source
from tuner.weight_files import weight_files

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(FLUX, tmp_path_factory.mktemp("flux"))


@pytest.fixture
def transformer(flux_folder: Path, tmp_path: Path) -> Path:
    """A copy of one component's folder, to be changed."""
    target = tmp_path / "model" / "transformer"
    target.mkdir(parents=True)
    for path in (flux_folder / "transformer").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def skeleton_of(component: str) -> nn.Module:
    return build_skeleton(FLUX, torch.float32).modules[component]


def filled(component: str, folder: Path) -> nn.Module:
    module = skeleton_of(component)
    source = component_source(component, module, folder.parent, 0)
    materialise(component, module, source, ComponentPlan(), CPU, lambda *_: None)
    return module


def test_shards_with_their_index(transformer: Path) -> None:
    whole = filled("transformer", transformer)
    model = FluxTransformer2DModel.from_pretrained(str(transformer))
    (transformer / f"{STEM}.safetensors").unlink()
    model.save_pretrained(str(transformer), max_shard_size="300KB")
    assert len(weight_files(transformer)) > 2
    assert same_weights(filled("transformer", transformer), whole)


def test_a_shard_that_is_missing(transformer: Path) -> None:
    model = FluxTransformer2DModel.from_pretrained(str(transformer))
    (transformer / f"{STEM}.safetensors").unlink()
    model.save_pretrained(str(transformer), max_shard_size="300KB")
    lost = weight_files(transformer)[1]
    lost.unlink()
    with pytest.raises(InvalidInput, match=rf"names files that are not there: {lost.name}"):
        tensor_files(transformer)


def test_an_index_that_is_none(transformer: Path) -> None:
    model = FluxTransformer2DModel.from_pretrained(str(transformer))
    (transformer / f"{STEM}.safetensors").unlink()
    model.save_pretrained(str(transformer), max_shard_size="300KB")
    (transformer / f"{STEM}.safetensors.index.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"is not an index of safetensors files"):
        tensor_files(transformer)


def test_plain_files_are_read_and_variants_beside_them_are_not(transformer: Path) -> None:
    plain = transformer / f"{STEM}.safetensors"
    halved = {name: item.half() for name, item in load_file(plain).items()}
    before = take_inventory(resolve_model(str(_whole(transformer))), WORKLOAD, lambda *_: None)
    save_file(halved, transformer / f"{STEM}.fp16.safetensors")
    (transformer / "consolidated.safetensors").write_bytes(b"not ours")
    assert weight_files(transformer) == (plain,)
    after = take_inventory(resolve_model(str(_whole(transformer))), WORKLOAD, lambda *_: None)
    assert after.weights == before.weights


def _whole(transformer: Path) -> Path:
    """The model of which only the transformer's folder was copied."""
    model = transformer.parent
    saved(FLUX, model.parent / "whole")
    for path in (model.parent / "whole").iterdir():
        if path.name != "transformer" and not (model / path.name).exists():
            path.rename(model / path.name)
    return model


def test_the_only_variant_is_read(transformer: Path) -> None:
    halved = {n: t.half() for n, t in load_file(transformer / f"{STEM}.safetensors").items()}
    (transformer / f"{STEM}.safetensors").unlink()
    save_file(halved, transformer / f"{STEM}.fp16.safetensors")
    module = filled("transformer", transformer)
    weight = module.get_parameter("x_embedder.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, halved["x_embedder.weight"].float())


def test_several_variants_and_no_plain_files(transformer: Path) -> None:
    plain = transformer / f"{STEM}.safetensors"
    (transformer / f"{STEM}.fp16.safetensors").write_bytes(plain.read_bytes())
    plain.rename(transformer / f"{STEM}.non_ema.safetensors")
    with pytest.raises(InvalidInput, match=r"holds the variants fp16, non_ema and no plain files"):
        filled("transformer", transformer)


def test_pickles_are_not_read(transformer: Path) -> None:
    (transformer / f"{STEM}.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, transformer / f"{STEM}.bin")
    with pytest.raises(InvalidInput, match=r"holds no weights as \.safetensors") as raised:
        filled("transformer", transformer)
    assert "safe_serialization" in str(raised.value)


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_files_are_named(transformer: Path, damage: str) -> None:
    path = transformer / f"{STEM}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"\x00" * 100)
    with pytest.raises(InvalidInput, match=rf"{STEM}\.safetensors cannot be read"):
        filled("transformer", transformer)


def test_weights_of_another_config(transformer: Path) -> None:
    path = transformer / f"{STEM}.safetensors"
    tensors = load_file(path)
    tensors["x_embedder.weight"] = torch.zeros(128, 8)
    save_file(tensors, path)
    with pytest.raises(
        InvalidInput, match=r"'x_embedder.weight' has shape \(128, 8\).*\(128, 16\)"
    ):
        filled("transformer", transformer)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_weights_that_lack_some(flux_folder: Path, tmp_path: Path, component: str) -> None:
    target = tmp_path / component
    target.mkdir()
    for path in (flux_folder / component).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    path = next(target.glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(max(name for name in tensors if name != "shared.weight"))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=rf"{component}"):
        filled(component, target)


def test_older_names_are_read_by_the_library(flux_folder: Path, tmp_path: Path) -> None:
    """CLIP's published checkpoints have a prefix that its class has lost."""
    target = tmp_path / "text_encoder"
    target.mkdir()
    tensors = load_file(flux_folder / "text_encoder" / "model.safetensors")
    older = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in tensors.items()}
    save_file(older, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((flux_folder / "text_encoder/config.json").read_bytes())
    module = filled("text_encoder", target)
    assert {name for name, _ in module.named_parameters()}.isdisjoint(older)
    assert same_weights(module, load(FLUX).text_encoder)
