"""Random numbers, safetensors in their layouts, a pipeline's own tensors: one kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import nn

from registry.plan import ComponentPlan
from tests.tuner.pipeline.tiny import (
    CPU,
    FLUX,
    SDXL,
    difference,
    load,
    parameters,
    picture,
    same_weights,
    saved,
)
from tuner.models import resolve_model
from tuner.pipeline.load import materialise
from tuner.pipeline.weights import (
    FusedWeights,
    ModuleWeights,
    RandomWeights,
    SafetensorsWeights,
)

META = torch.device("meta")


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(FLUX, tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(SDXL, tmp_path_factory.mktemp("sdxl"))


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
