"""The whole training in miniature: what it writes is a pipeline that plain diffusers loads."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from examples.train_tiny.classifier import load_classifier, right_answers
from examples.train_tiny.components import Denoiser, autoencoder
from examples.train_tiny.layout import judged_batch
from examples.train_tiny.scenes import DOMAINS
from examples.train_tiny.shapes import draw
from examples.train_tiny.sizes import SIZES
from examples.train_tiny.training import Request, train

CPU = torch.device("cpu")
MOST_BYTES = 16_000_000


def test_the_full_size_is_small_enough_to_keep() -> None:
    size = SIZES["full"]
    parts = [autoencoder(size), *Denoiser(size).children()]
    parameters = sum(weight.numel() for part in parts for weight in part.parameters())
    assert 2 * parameters < MOST_BYTES
    assert size.image_tokens == 64


@pytest.mark.slow
def test_what_is_trained_loads_with_plain_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(SIZES["tiny"], pool=128, vae_batch=8, classifier_batch=8, batch=8)
    monkeypatch.setitem(SIZES, "tiny", small)
    train(
        Request(
            out=tmp_path,
            start_s=time.monotonic(),
            length_s=12,
            size="tiny",
            domain="narrow",
            device="cpu",
            seed=1,
            workers=0,
        )
    )
    pipe = FluxPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    asked = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    pictures = [
        pipe(words, generator=torch.Generator().manual_seed(0), **asked).images
        for words in ("a large red circle on the left", "a large blue circle on the right")
    ]
    assert pictures[0].shape == (1, 3, 32, 32)
    assert pictures[0].isfinite().all()
    assert not torch.equal(*pictures)
    batch = judged_batch(DOMAINS["narrow"], 1, 16)
    answers = right_answers(
        load_classifier(tmp_path / "classifier.safetensors")(draw(batch, 32, CPU)), batch
    )
    kept = json.loads((tmp_path / "fidelity.json").read_text())
    assert set(kept["held_out"]["real"]) == set(answers)
    assert {"classifier", "vae", "denoiser"} <= set(
        json.loads((tmp_path / "curve.json").read_text())
    )
    assert "| held_out | generated |" in (tmp_path / "pipeline/README.md").read_text()
    assert (tmp_path / "grid.png").stat().st_size > 1000
