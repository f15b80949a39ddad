"""Random numbers, safetensors in their layouts, a pipeline's own tensors: one kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from registry.errors import InvalidInput
from registry.plan import ComponentPlan
from tests.tuner.pipeline.tiny import (
    CPU,
    FLUX,
    SDXL,
    WORKLOAD,
    difference,
    load,
    parameters,
    picture,
    same_weights,
    saved,
)
from tuner.models import resolve_model
from tuner.pipeline.checkpoint import tensor_files, weight_files
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.load import materialise
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.weights import (
    FusedWeights,
    ModuleWeights,
    RandomWeights,
    SafetensorsWeights,
    component_source,
)

STEM = "diffusion_pytorch_model"
META = torch.device("meta")


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(FLUX, tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(SDXL, tmp_path_factory.mktemp("sdxl"))


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


def test_random_weights_depend_on_name_component_and_seed_alone() -> None:
    like = torch.empty(8, 16)

    def numbers(component: str, seed: int, name: str) -> torch.Tensor:
        return RandomWeights(component, seed).tensor(name, like, CPU)

    first = numbers("unet", 0, "a.weight")
    assert torch.equal(first, numbers("unet", 0, "a.weight"))
    assert not torch.equal(first, numbers("unet", 0, "b.weight"))
    assert not torch.equal(first, numbers("unet", 1, "a.weight"))
    assert not torch.equal(first, numbers("vae", 0, "a.weight"))


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("to_q.weight", (256, 400), 0.0, 1 / 20),
        ("conv.weight", (256, 100, 2, 2), 0.0, 1 / 20),
        ("block.SelfAttention.q.weight", (256, 400), 0.0, 1 / 160),
        ("norm.weight", (65536,), 1.0, 0.02),
        ("norm.bias", (65536,), 0.0, 0.02),
    ],
)
def test_random_weights_keep_activations_in_bounds(
    name: str, shape: tuple[int, ...], mean: float, deviation: float
) -> None:
    found = RandomWeights("unet", 0).tensor(name, torch.empty(shape), CPU)
    assert float(found.mean()) == pytest.approx(mean, abs=0.002)
    assert float(found.std()) == pytest.approx(deviation, rel=0.02)


def test_one_seed_gives_one_pipeline() -> None:
    first, second = parameters(load(FLUX)), parameters(load(FLUX))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    other = parameters(load(FLUX.model_copy(update={"seed": 1})))
    assert all(not torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("folder", "factory"),
    [("flux_folder", FluxPipeline), ("sdxl_folder", StableDiffusionXLPipeline)],
)
def test_a_folder_gives_the_picture_of_diffusers_own_loading(
    folder: str, factory: Any, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(folder)
    theirs = factory.from_pretrained(str(path))
    ours = load(resolve_model(str(path)))
    for name, module in theirs.components.items():
        if isinstance(module, nn.Module):
            assert same_weights(module, getattr(ours, name))
    assert difference(picture(ours), picture(theirs)) == 0.0


def test_random_weights_for_a_folder_read_none(flux_folder: Path, tmp_path: Path) -> None:
    for path in flux_folder.rglob("*.json"):
        target = tmp_path / "bare" / path.relative_to(flux_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pipe = load(resolve_model(str(tmp_path / "bare"), weights="random"))
    assert same_weights(pipe.transformer, load(FLUX).transformer)


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


class Normalised(nn.Module):
    """As FLUX.2's VAE: statistics that are buffers and come with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.arange(2.0), persistent=False)


def empty_normalised() -> nn.Module:
    with init_empty_weights(include_buffers=False):
        return Normalised()


def test_persistent_buffers_come_from_the_file(tmp_path: Path) -> None:
    trained = Normalised()
    trained.norm.running_mean = torch.tensor([1.0, 2.0])
    trained.norm.num_batches_tracked = torch.tensor(7)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    module = empty_normalised()
    materialise("vae", module, SafetensorsWeights(tmp_path), ComponentPlan(), CPU, lambda *_: None)
    assert module.get_buffer("norm.running_mean").tolist() == [1.0, 2.0]
    assert int(module.get_buffer("norm.num_batches_tracked")) == 7
    assert module.get_buffer("table").tolist() == [0.0, 1.0]


def test_buffers_of_random_weights_are_as_constructed() -> None:
    module = empty_normalised()
    materialise("vae", module, RandomWeights("vae", 0), ComponentPlan(), CPU, lambda *_: None)
    assert module.get_buffer("norm.running_var").tolist() == [1.0, 1.0]


def test_an_apps_tensors_are_given_once_and_then_let_go() -> None:
    held = torch.ones(2, 2)
    source = ModuleWeights({"weight": held, "mean": torch.zeros(2)})
    given = source.tensor("weight", torch.empty(2, 2, dtype=torch.bfloat16), CPU)
    assert given.dtype == torch.bfloat16
    with pytest.raises(KeyError):
        source.tensor("weight", held, CPU)
    assert source.buffer("mean", torch.ones(2)).tolist() == [0.0, 0.0]
    assert source.buffer("absent", torch.ones(2)).tolist() == [1.0, 1.0]


def test_fused_weights_are_their_parts_in_order() -> None:
    parts = {"a.to_q.weight": torch.ones(4, 2), "a.to_k.weight": torch.full((2, 2), 2.0)}
    inner = ModuleWeights({**parts, "b.to_qk.weight": torch.zeros(1, 2)})
    source = FusedWeights(inner, {"a.to_qk": (("a.to_q", 4), ("a.to_k", 2))})
    fused = source.tensor("a.to_qk.weight", torch.empty(6, 2, device=META), CPU)
    assert fused[:, 0].tolist() == [1, 1, 1, 1, 2, 2]
    assert source.tensor("b.to_qk.weight", torch.empty(1, 2), CPU).tolist() == [[0.0, 0.0]]
