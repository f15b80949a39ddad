"""The model that the catalog ships: prompts decide its pictures, as a classifier reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from examples.train_tiny.classifier import load_classifier
from examples.train_tiny.scenes import BACKGROUNDS, COLOURS, PLACES
from registry.plan import ComponentPlan, Quantization
from tests.tuner.pipeline.tiny import CPU, picture, plan
from tuner import catalog
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.scoring import sqnr_db
from tuner.request import DEFAULT_PROMPTS, default_prompts
from tuner.weight_files import weights_digest

SPEC = resolve_model("shapes-flux")
CLASSIFIER = Path(__file__).parents[3] / "examples/train_tiny/results/classifier.safetensors"
SIZE = {"height": 128, "width": 128}
STEPS = 8
SEEDS = (0, 1, 2)
SCENES = (("red", "on the left"), ("red", "on the right"), ("blue", "at the top"))


def caption(colour: str, place: str) -> str:
    return f"a large {colour} circle {place}, on a white background"


def seen(pictures: torch.Tensor) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """For each picture in 0..1: the (colour, place) of each group in it, and the background."""
    reading = load_classifier(CLASSIFIER)(pictures.float() * 2 - 1)
    counts, colours = (reading.groups[index].argmax(2).tolist() for index in (0, 3))
    behind = reading.behind.argmax(1).tolist()
    return [
        (
            tuple(
                (list(COLOURS)[colour], place)
                for place, count, colour in zip(PLACES, in_one, of_one, strict=True)
                if count
            ),
            list(BACKGROUNDS)[background],
        )
        for in_one, of_one, background in zip(counts, colours, behind, strict=True)
    ]


def drawn(pipe: Any, prompts: list[str], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = {"num_inference_steps": STEPS, "generator": generator}
    return picture(pipe, prompt=prompts, **SIZE, **steps)


def folder() -> Path:
    found = catalog.weights_folder("shapes-flux")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def pipe() -> Any:
    return engine.load(SPEC, plan(), CPU)


@pytest.mark.parametrize("seed", SEEDS)
def test_prompts_decide_colour_place_and_background(pipe: Any, seed: int) -> None:
    """One after the other and turned round: the answers turn with the prompts."""
    wanted = [((scene,), "white") for scene in SCENES]
    assert seen(drawn(pipe, [caption(*scene) for scene in SCENES], seed)) == wanted
    turned = [caption(*scene) for scene in reversed(SCENES)]
    assert seen(drawn(pipe, turned, seed)) == wanted[::-1]


def test_random_weights_of_it_draw_nothing_that_was_asked_for() -> None:
    untrained = engine.load(resolve_model("shapes-flux", weights="random"), plan(), CPU)
    found = seen(drawn(untrained, [caption(*scene) for scene in SCENES], 0))
    assert found != [((scene,), "white") for scene in SCENES]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plain_pipeline_draws_the_same_pictures(dtype: Any) -> None:
    ours = engine.load(SPEC, plan(dtype=dtype), CPU)
    plain = FluxPipeline.from_pretrained(folder(), dtype=getattr(torch, dtype))
    prompts = [caption(*scene) for scene in SCENES]
    assert torch.equal(drawn(ours, prompts, 0), drawn(plain, prompts, 0))


def test_eight_bits_keep_the_picture(pipe: Any) -> None:
    prompts = [caption(*scene) for scene in SCENES]
    quantization = Quantization(scheme="int8_weight_only", skip=("*embed*", "proj_out"))
    chosen = plan({"transformer": ComponentPlan(quantization=quantization)})
    wanted, found = (drawn(some, prompts, 0) for some in (pipe, engine.load(SPEC, chosen, CPU)))
    assert not torch.equal(wanted, found)
    assert seen(found) == seen(wanted)
    assert sqnr_db(wanted, found) > 20.0


def test_the_shipped_inventory_is_of_the_shipped_weights() -> None:
    """What it is kept under, and what an exact match means, is read there and not counted."""
    shipped = catalog.shipped_inventory("shapes-flux")
    assert shipped is not None
    names = [component.name for component in shipped.components]
    assert shipped.weights == weights_digest(folder(), names)


def test_the_model_knows_every_word_of_its_default_prompts(pipe: Any) -> None:
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        known = tokenizer(list(default_prompts(SPEC))).input_ids
        assert all(tokenizer.unk_token_id not in words for words in known)
        others = tokenizer(list(DEFAULT_PROMPTS)).input_ids
        assert all(tokenizer.unk_token_id in words for words in others)


def test_the_shipped_folder_stays_small() -> None:
    size = sum(path.stat().st_size for path in folder().rglob("*") if path.is_file())
    assert size < 16_000_000
