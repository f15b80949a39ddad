"""The shipped model draws what its prompt says: pictures that mean something, on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from registry.plan import ComponentPlan, PipelineOptions, Plan, Quantization
from tuner import catalog
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.scoring import sqnr_db

CPU = torch.device("cpu")
SHAPES = resolve_model("shapes-flux")
RED = (1.0, 0.1, 0.1)
BLUE = (0.1, 0.2, 0.9)
MOST_BYTES = 16 * 10**6
STEPS = 8


def plan(scheme: Any = "none") -> Plan:
    part = ComponentPlan(quantization=Quantization(scheme=scheme, skip=("*embed*", "proj_out")))
    return Plan(pipeline=PipelineOptions(dtype="float32", components={"transformer": part}))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return engine.load(SHAPES, plan(), CPU)


def drawn(pipe: Any, prompt: str, seed: int = 0) -> torch.Tensor:
    """(3, 128, 128), from 0 to 1."""
    found = pipe(
        prompt,
        height=128,
        width=128,
        num_inference_steps=STEPS,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )
    picture: torch.Tensor = found.images[0].float()
    return picture


def place_of(picture: torch.Tensor, colour: tuple[float, float, float]) -> tuple[float, float]:
    """The centre (x, y) of what has nearly this colour, each from 0 to 1."""
    apart = (picture - torch.tensor(colour)[:, None, None]).abs().amax(0)
    rows, columns = torch.nonzero(apart < 0.3, as_tuple=True)
    assert len(rows) > 20, "nothing of this colour"
    return float(columns.float().mean()) / 127, float(rows.float().mean()) / 127


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prompts_decide_where_and_what(pipe: Any, seed: int) -> None:
    left = drawn(pipe, "a red circle on the left, on a white background", seed)
    right = drawn(pipe, "a red circle on the right, on a white background", seed)
    assert place_of(left, RED)[0] < 0.4
    assert place_of(right, RED)[0] > 0.6
    blue = drawn(pipe, "a blue square at the top, on a white background", seed)
    assert place_of(blue, BLUE)[1] < 0.4


def test_plain_diffusers_draws_the_same(pipe: Any) -> None:
    folder = catalog.shipped_folder(catalog.entry("shapes-flux"))
    plain = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    prompt = "a red circle on the left, on a white background"
    assert torch.equal(drawn(pipe, prompt), drawn(plain, prompt))


def test_eight_bits_keep_the_picture(pipe: Any) -> None:
    prompt = "a red circle on the left, on a white background"
    quantized = engine.load(SHAPES, plan("int8_weight_only"), CPU)
    wanted, found = drawn(pipe, prompt), drawn(quantized, prompt)
    assert not torch.equal(wanted, found)
    assert sqnr_db(wanted, found) > 20.0


def test_random_weights_are_of_the_same_model_and_draw_something_else(pipe: Any) -> None:
    noise = engine.load(resolve_model("shapes-flux", weights="random"), plan(), CPU)
    assert _shapes_of(noise.transformer) == _shapes_of(pipe.transformer)
    prompt = "a red circle on the left, on a white background"
    assert sqnr_db(drawn(pipe, prompt), drawn(noise, prompt)) < 10.0


def _shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: item.shape for name, item in module.named_parameters()}


def test_it_is_small_enough_to_ship() -> None:
    folder = catalog.shipped_folder(catalog.entry("shapes-flux"))
    assert folder is not None
    assert sum(item.stat().st_size for item in folder.rglob("*.safetensors")) < MOST_BYTES
    assert (folder / "README.md").is_file()
