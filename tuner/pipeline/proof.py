"""Writes what the reference did, and holds another plan against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.errors import TunerError
from registry.record import QualityScore
from registry.workload import Shape
from tuner.pipeline.reference import Capture, Reference, reference_path
from tuner.pipeline.request import Report, Requests
from tuner.pipeline.scoring import NotFiniteError, Scorer


class QualityRejectedError(TunerError):
    """The plan's numbers are not finite: no policy admits that."""


def refuse_not_finite(images: torch.Tensor, what: str = "picture") -> None:
    """Raises QualityRejectedError for pictures with NaN or infinity."""
    if not bool(torch.isfinite(images).all()):
        raise QualityRejectedError(f"the {what} holds NaN or infinity")


def write_reference(requests: Requests, denoiser: nn.Module, folder: Path) -> None:
    """The reference's trajectories, embeddings and pictures. Needs an uncompiled denoiser."""
    for shape in requests.shapes:
        for number, pair in enumerate(requests.pairs):
            capture = Capture(requests.steps)
            with capture.watching(denoiser):
                times = requests.run(shape, pair, "reference")
            refuse_not_finite(times.images, "reference picture")
            capture.save(reference_path(folder, shape, number), times.embeddings, times.images)


def score(
    requests: Requests,
    pipe: Any,
    denoiser: nn.Module,
    device: torch.device,
    folder: Path,
    report: Report,
    *,
    pictures: bool,
) -> tuple[tuple[QualityScore, ...], dict[str, str]]:
    """Every pair of every shape against the reference in `folder`, and why of metrics that could
    not be computed; `pictures` scores whole requests too, not only the denoiser. Raises
    QualityRejectedError for NaN and infinity."""
    scores: list[QualityScore] = []
    not_computed: dict[str, str] = {}
    try:
        for shape in requests.shapes:
            for number, pair in enumerate(requests.pairs):
                scorer = Scorer(Reference(reference_path(folder, shape, number)), shape, *pair)
                scores += scorer.trajectory(denoiser, device)
                pipe.maybe_free_model_hooks()
                if pictures:
                    scores += _picture_scores(requests, scorer, shape, pair, device)
                not_computed |= scorer.not_computed
                report("score", number + 1, len(requests.pairs), shape.label)
    except NotFiniteError as error:
        raise QualityRejectedError(str(error)) from None
    return tuple(scores), not_computed


def _picture_scores(
    requests: Requests,
    scorer: Scorer,
    shape: Shape,
    pair: tuple[str, int],
    device: torch.device,
) -> list[QualityScore]:
    times = requests.run(shape, pair, "score")
    return scorer.embeddings(times.embeddings, device) + scorer.picture(times.images)
