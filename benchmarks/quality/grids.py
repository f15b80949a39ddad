"""Pictures side by side: the reference, what plans make of it, and what damage does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.quality.drawing import Judge, draw_each, load_pipeline
from benchmarks.quality.pairs import Pair, pairs
from benchmarks.quality.treatments import TREATMENTS
from examples.train_tiny.pictures import save_grid

ROWS = (
    None,
    "other_seed",
    "int8_dynamic",
    "float8_weight_only",
    "taylorseer_4",
    "denoiser_4_bits",
    "block_3_bits",
    "swapped_channels",
    "text_2_bits",
)
"""From top to bottom; None is the reference."""
COLUMNS = 6
COLOURS = 128
"""Of the picture's palette: it stays small."""


def save_pictures(path: Path) -> list[str]:
    """One row a treatment, one column a held-out pair. The rows' names and prompts' fidelity."""
    judge, some = Judge(), _single(pairs("held-out"))
    drawn, told = [], []
    for name in ROWS:
        images = _drawn(name, some)
        shares = judge.fidelity(images, some)
        told.append(f"{name or 'reference'}: {sum(shares) / len(shares):.2f}")
        drawn.append(images)
    save_grid(torch.cat(drawn) * 2 - 1, path, columns=COLUMNS)
    Image.open(path).quantize(COLOURS).save(path, optimize=True)
    return told


def _single(every: Sequence[Pair]) -> list[Pair]:
    """The first pairs with a single group: large enough to be looked at."""
    return [pair for pair in every if len(pair.scene.groups) == 1][:COLUMNS]


def _drawn(name: str | None, some: Sequence[Pair]) -> torch.Tensor:
    treatment = TREATMENTS[name or "other_seed"]
    pipe = load_pipeline(treatment.plan)
    added = treatment.added_to_seed if name else 0
    with treatment.planting(pipe, 0):
        images: torch.Tensor = draw_each(pipe, some, added).images.float()
    return images.nan_to_num(0.0)
