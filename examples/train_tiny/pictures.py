"""Generated pictures: grids to look at, and how well they follow held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.train_tiny.classifier import Classifier, right_answers
from examples.train_tiny.layout import SceneBatch
from examples.train_tiny.shapes import draw
from examples.train_tiny.words import TEXT_TOKENS

STEPS = 20
AT_ONCE = 128
GAP = 4

PROMPTS = (
    "a large red circle on the left, on a white background",
    "a large red circle on the right, on a white background",
    "a large blue square at the top, on a yellow background",
    "a small green triangle at the bottom, on a black background",
    (
        "two small red circles on the left and a large striped blue square on the right, "
        "on a yellow background"
    ),
    "three dotted yellow stars in the middle, on a purple background",
    "a pink ring in the top left and a cyan cross in the bottom right, on a gray background",
    (
        "two striped orange triangles at the top and three small purple rings at the bottom, "
        "on a white background"
    ),
    "a small blue star in the middle, on an orange background",
    "three large green crosses on the right, on a pink background",
    "a dotted red square in the top right, on a cyan background",
    "a large yellow ring in the bottom left and a small pink star in the top right",
    "two large cyan circles at the bottom, on a blue background",
    "a purple star on the left and a purple circle on the right, on a green background",
    "a red star",
    "three small striped pink squares on the left, on a black background",
)
"""Drawn again and again, with one seed."""


def generate(
    pipe: Any, prompts: Sequence[str], *, pixels: int, seed: int, text_tokens: int = TEXT_TOKENS
) -> Tensor:
    """Pictures [N, 3, pixels, pixels] in -1..1 on the CPU, from the plain pipeline."""
    source = torch.Generator("cpu").manual_seed(seed)
    parts = [
        pipe(
            list(prompts[start : start + AT_ONCE]),
            height=pixels,
            width=pixels,
            num_inference_steps=STEPS,
            max_sequence_length=text_tokens,
            generator=source,
            output_type="pt",
        ).images
        for start in range(0, len(prompts), AT_ONCE)
    ]
    return torch.cat(parts).float().cpu() * 2 - 1


def fidelity(
    pipe: Any,
    classifier: Classifier,
    batch: SceneBatch,
    *,
    pixels: int,
    seed: int,
    text_tokens: int = TEXT_TOKENS,
) -> dict[str, dict[str, float]]:
    """Shares of right answers about pictures of the scenes of `batch`.

    `generated` from the captions, `real` as drawn, `decoded` as the VAE gives the real ones back.
    """
    device = next(classifier.parameters()).device
    drawn = generate(pipe, batch.captions, pixels=pixels, seed=seed, text_tokens=text_tokens)
    real = draw(batch, pixels, device)
    pictures = {"generated": drawn.to(device), "real": real, "decoded": _decoded(pipe.vae, real)}
    with torch.no_grad():
        return {name: right_answers(classifier(some), batch) for name, some in pictures.items()}


def _decoded(vae: Any, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        latents = [
            vae.encode(part.to(vae.dtype)).latent_dist.mode() for part in pictures.split(128)
        ]
        return torch.cat([vae.decode(part).sample.float() for part in latents]).clamp(-1, 1)


def save_grid(pictures: Tensor, path: Path, *, columns: int = 4) -> None:
    """Pictures [N, 3, height, width] in -1..1, row by row, as a PNG."""
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    height, width = levels.shape[1] + GAP, levels.shape[2] + GAP
    rows = -(-len(levels) // columns)
    sheet = np.full((rows * height - GAP, columns * width - GAP, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(levels):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height - GAP, left : left + width - GAP] = picture
    Image.fromarray(sheet).save(path)
