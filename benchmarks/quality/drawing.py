"""Draws a batch of pairs, and holds it against what the reference drew, by the gate's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from benchmarks.quality.pairs import Pair, asked_for
from examples.train_tiny.classifier import Classifier, load_classifier, right_answers
from registry.workload import Shape
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.caching import call_alone
from tuner.pipeline.reference import (
    Capture,
    Reference,
    first_tensor,
    same_schedule,
    timesteps_of,
)
from tuner.pipeline.request import call_arguments
from tuner.pipeline.scoring import CEILING_DB, NotFiniteError, sqnr_db
from tuner.pipeline.timing import DeviceClock, RequestTimes, run_request

MODEL = resolve_model("shapes-flux")
CPU = torch.device("cpu")
SIDE, TEXT_TOKENS, STEPS = 128, 32, 20
CLASSIFIER = (
    Path(__file__).resolve().parents[2] / "examples/train_tiny/results/classifier.safetensors"
)


@dataclass(frozen=True)
class Found:
    """What one picture scored; None where a number on the way was not finite. `sqnr_db` is of each
    kept step, `embedding_sqnr_db` the worst of the prompt's embeddings; `same_schedule` whether the
    scheduler went through the reference's timesteps."""

    sqnr_db: tuple[float | None, ...]
    embedding_sqnr_db: float | None
    psnr_db: float | None
    ssim: float | None
    fidelity: float
    same_schedule: bool = True


def load_pipeline(plan: Any) -> Any:
    return engine.load(MODEL, plan, CPU)


def draw(pipe: Any, some: Sequence[Pair], added_to_seed: int = 0) -> RequestTimes:
    """One request for the pictures of `some`, each from its own seed."""
    shape = Shape(height=SIDE, width=SIDE, batch_size=len(some), text_tokens=TEXT_TOKENS)
    arguments = call_arguments(pipe, shape, [pair.prompt for pair in some], STEPS)
    seeds = [pair.seed + added_to_seed for pair in some]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"generator": generators, "output_type": "pt"}
    with torch.no_grad():
        return run_request(pipe, DeviceClock(CPU), {**arguments, **options}, lambda _: None)


def draw_each(pipe: Any, some: Sequence[Pair], added_to_seed: int = 0) -> RequestTimes:
    """As `draw`, in a request a picture where steps are cached: in a batch one decision would be
    made for all. The times are the last one's."""
    if not pipe.transformer.is_cache_enabled:
        return draw(pipe, some, added_to_seed)
    each = [draw(pipe, [pair], added_to_seed) for pair in some]
    images = torch.cat([one.images for one in each])
    parts = zip(*(one.embeddings for one in each), strict=True)
    return replace(each[-1], images=images, embeddings=tuple(map(_joined, parts)))


def _joined(parts: Sequence[Any]) -> Any:
    """Of every picture; positions of the text have no place for a batch, and are all the same."""
    whole = isinstance(parts[0], torch.Tensor) and parts[0].shape[0] == 1
    return torch.cat(list(parts)) if whole else parts[0]


def write_reference(pipe: Any, some: Sequence[Pair], path: Path) -> RequestTimes:
    capture = Capture(STEPS)
    with capture.watching(pipe.transformer):
        drawn = draw(pipe, some)
    capture.save(path, drawn.embeddings, drawn.images, timesteps=timesteps_of(pipe))
    return drawn


class Judge:
    """Scores batches; the classifier is the one trained beside the model."""

    def __init__(self) -> None:
        self._classifier: Classifier = load_classifier(CLASSIFIER)

    def scores(
        self, pipe: Any, some: Sequence[Pair], reference: Reference, added_to_seed: int = 0
    ) -> list[Found]:
        """One for each pair."""
        steps = [_step_scores(pipe, reference, step) for step in reference.steps()]
        drawn = draw_each(pipe, some, added_to_seed)
        images, wanted = drawn.images.float(), reference.image().float()
        fidelity = self.fidelity(images, some)
        return [
            Found(
                sqnr_db=tuple(values[number] for values in steps),
                embedding_sqnr_db=_embedding_score(drawn, reference, number),
                psnr_db=_psnr(images[number], wanted[number]),
                ssim=_ssim(images[number], wanted[number]),
                fidelity=fidelity[number],
                same_schedule=same_schedule(timesteps_of(pipe), reference.timesteps()),
            )
            for number in range(len(some))
        ]

    def fidelity(self, images: torch.Tensor, some: Sequence[Pair]) -> list[float]:
        """The share of right answers about each picture; what is not finite reads as black."""
        pictures = torch.nan_to_num(images.float(), 0.0, 0.0, 0.0) * 2 - 1
        answers = []
        with torch.no_grad():
            for picture, pair in zip(pictures, some, strict=True):
                reading = self._classifier(picture[None])
                answers.append(right_answers(reading, asked_for([pair]))["all"])
        return answers


def _step_scores(pipe: Any, reference: Reference, step: int) -> list[float | None]:
    args, kwargs = reference.inputs(step, CPU)
    with torch.no_grad():
        found = first_tensor(call_alone(pipe.transformer, args, kwargs))
    wanted = reference.output(step, CPU)
    return [_sqnr(*both) for both in zip(wanted, found, strict=True)]


def _embedding_score(drawn: RequestTimes, reference: Reference, number: int) -> float | None:
    values = [
        _sqnr(wanted[number], drawn.embeddings[index][number])
        for index, wanted in reference.embeddings(CPU).items()
        if float(wanted.float().abs().sum()) > 0.0
    ]
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def _sqnr(wanted: torch.Tensor, found: torch.Tensor) -> float | None:
    try:
        return sqnr_db(wanted, found)
    except NotFiniteError:
        return None


def _psnr(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    if not bool(torch.isfinite(found).all()):
        return None
    value = float(peak_signal_noise_ratio(found, wanted, data_range=(0.0, 1.0)))
    return min(CEILING_DB, value) if math.isfinite(value) else CEILING_DB


def _ssim(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    if not bool(torch.isfinite(found).all()):
        return None
    value = structural_similarity_index_measure(found[None], wanted[None], data_range=(0.0, 1.0))
    return float(value[0] if isinstance(value, tuple) else value)
