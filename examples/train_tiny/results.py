"""What is kept: the pipeline's folder, figures, and a model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from examples.train_tiny.pictures import STEPS
from examples.train_tiny.words import TEXT_TOKENS

Figures = dict[str, dict[str, dict[str, float]]]
"""Set of prompts -> generated, real or decoded -> attribute -> share of right answers."""

CARD = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class Origin:
    """How the pipeline came to be; `steps` are the denoiser's."""

    seed: int
    size: str
    domain: str
    device: str
    minutes: float
    steps: int
    pixels: int


def save_pipeline(pipe: Any, out: Path) -> None:
    """Writes `out/pipeline`; a crash leaves the one before, or one that is complete."""
    fresh, kept = out / "pipeline.partial", out / "pipeline"
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.save_pretrained(fresh, safe_serialization=True)
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)


def bytes_of_weights(out: Path) -> int:
    """Of all safetensors files of the saved pipeline."""
    return sum(path.stat().st_size for path in (out / "pipeline").rglob("*.safetensors"))


def save_figures(path: Path, figures: Figures) -> None:
    """As JSON, four decimals."""
    short = {
        prompts: {
            kind: {name: round(share, 4) for name, share in shares.items()}
            for kind, shares in kinds.items()
        }
        for prompts, kinds in figures.items()
    }
    path.write_text(json.dumps(short, indent=1) + "\n", encoding="utf-8")


def write_card(out: Path, origin: Origin, figures: Figures) -> None:
    """`README.md` of the pipeline's folder."""
    size = bytes_of_weights(out)
    text = CARD.read_text(encoding="utf-8").format(
        parameters=size / 2e6,
        megabytes=size / 1e6,
        pixels=origin.pixels,
        steps=STEPS,
        tokens=TEXT_TOKENS,
        size=origin.size,
        domain=origin.domain,
        seed=origin.seed,
        minutes=origin.minutes,
        device=origin.device,
        denoiser_steps=origin.steps,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        transformers=transformers.__version__,
        table=_table(figures),
    )
    (out / "pipeline" / "README.md").write_text(text, encoding="utf-8")


def _table(figures: Figures) -> str:
    names = list(next(iter(figures.values()))["real"])
    rows = [("prompts", "pictures", *names), ("---",) * (len(names) + 2)]
    for prompts, kinds in figures.items():
        for kind, shares in kinds.items():
            rows.append((prompts, kind, *(f"{shares[name]:.3f}" for name in names)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
