"""Writes what the reference did, and holds another plan against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.errors import TunerError
from registry.record import QualityScore
from registry.workload import Shape
from tuner.pipeline.reference import Capture, Reference, reference_path, same_schedule
from tuner.pipeline.request import Report, Requests
from tuner.pipeline.scoring import NotFiniteError, Scorer
from tuner.pipeline.timing import RequestTimes


class QualityRejectedError(TunerError):
    """The plan's numbers are not finite, or its schedule is another: no policy admits that."""


Pair = tuple[str, int]
"""A prompt and a seed."""


@dataclass(frozen=True)
class Drawn:
    """What a request drew, on the host. `images` is (batch, channels, height, width)."""

    images: torch.Tensor
    embeddings: tuple[Any, ...]
    timesteps: torch.Tensor | None


def refuse_not_finite(images: torch.Tensor, what: str = "picture") -> None:
    """Raises QualityRejectedError for pictures with NaN or infinity."""
    if not bool(torch.isfinite(images).all()):
        raise QualityRejectedError(f"the {what} holds NaN or infinity")


def write_reference(requests: Requests, denoiser: nn.Module, folder: Path) -> None:
    """The reference's trajectories, embeddings and pictures. Needs an uncompiled denoiser.

    Two pictures of one prompt are each other's yardstick of how much a seed matters.
    """
    for shape in requests.shapes:
        pairs = [*requests.pairs, *requests.more_pairs]
        done = [_captured(requests, denoiser, shape, pair) for pair in pairs]
        for number, (capture, drawn) in enumerate(done):
            partner = done[(number + len(requests.pairs)) % len(done)][1]
            capture.save(
                reference_path(folder, shape, number),
                drawn.embeddings,
                drawn.images,
                other_seed=partner.images if requests.more_pairs else None,
                timesteps=drawn.timesteps,
            )


def _captured(
    requests: Requests, denoiser: nn.Module, shape: Shape, pair: Pair
) -> tuple[Capture, Drawn]:
    capture = Capture(requests.steps)
    with capture.watching(denoiser):
        times = requests.run(shape, pair, "reference")
    refuse_not_finite(times.images, "reference picture")
    return capture, drawn_by(requests, times)


def drawn_by(requests: Requests, times: RequestTimes) -> Drawn:
    """What `requests` drew last, off the device."""
    embeddings = tuple(
        item.cpu() if isinstance(item, torch.Tensor) else item for item in times.embeddings
    )
    return Drawn(times.images.cpu(), embeddings, requests.timesteps())


def score(
    requests: Requests,
    pipe: Any,
    denoiser: nn.Module,
    device: torch.device,
    folder: Path,
    report: Report,
    *,
    pictures: bool,
    timed: Mapping[tuple[Shape, Pair], Drawn] | None = None,
    is_open: Callable[[Sequence[QualityScore]], bool] = lambda _: False,
) -> tuple[tuple[QualityScore, ...], dict[str, str]]:
    """Every pair of every shape against the reference in `folder`, more pairs while `is_open` says
    so of the shape's scores, and why of metrics that could not be computed. `pictures` scores
    whole requests too, not only the denoiser: those that were `timed`, others are drawn. Raises
    QualityRejectedError for NaN, infinity and another schedule."""
    scores: list[QualityScore] = []
    not_computed: dict[str, str] = {}
    known = timed or {}
    try:
        for shape in requests.shapes:
            found: list[QualityScore] = []
            for number, pair in enumerate((*requests.pairs, *requests.more_pairs)):
                if number >= len(requests.pairs) and not is_open(found):
                    break
                reference = Reference(reference_path(folder, shape, number))
                scorer = Scorer(reference, shape, *pair)
                found += scorer.trajectory(denoiser, device)
                pipe.maybe_free_model_hooks()
                if pictures:
                    drawn = known.get((shape, pair)) or drawn_by(
                        requests, requests.run(shape, pair, "score")
                    )
                    found += _picture_scores(scorer, reference, drawn, device)
                not_computed |= scorer.not_computed
                report("score", number + 1, max(number + 1, len(requests.pairs)), shape.label)
            scores += found
    except NotFiniteError as error:
        raise QualityRejectedError(str(error)) from None
    return tuple(scores), not_computed


def _picture_scores(
    scorer: Scorer, reference: Reference, drawn: Drawn, device: torch.device
) -> list[QualityScore]:
    if not same_schedule(drawn.timesteps, reference.timesteps()):
        raise QualityRejectedError("the scheduler went through other timesteps than the reference")
    return scorer.embeddings(drawn.embeddings, device) + scorer.picture(drawn.images)
