"""How far a plan's numbers and pictures are from the reference's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from registry.record import QualityScore
from registry.workload import Shape
from tuner.pipeline.caching import call_alone
from tuner.pipeline.perceptual import CannotScoreError, lpips
from tuner.pipeline.reference import Reference, first_tensor
from tuner.policies import Metric

CEILING_DB = 120.0
"""What an exact match scores: its true ratio is infinite."""


class NotFiniteError(Exception):
    """A prediction or picture holds NaN or infinity."""


def sqnr_db(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, at most CEILING_DB. Raises NotFiniteError."""
    signal = reference.float()
    noise = signal - found.float()
    if not bool(torch.isfinite(noise).all()):
        raise NotFiniteError("a tensor held against the reference is not finite")
    power, error = float(signal.pow(2).sum()), float(noise.pow(2).sum())
    if error == 0.0:
        return CEILING_DB
    return min(CEILING_DB, 10.0 * math.log10(max(power, 1e-30) / error))


def psnr_db(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of finite pictures in [0, 1], in dB, at most CEILING_DB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = float(peak_signal_noise_ratio(found, wanted, data_range=(0.0, 1.0)))
    return min(CEILING_DB, value) if math.isfinite(value) else CEILING_DB


class Scorer:
    """Scores one (shape, prompt, seed) pair against its reference. `not_computed` says why of
    metrics that could not be."""

    def __init__(self, reference: Reference, shape: Shape, prompt: str, seed: int) -> None:
        self._reference, self._shape = reference, shape
        self._prompt, self._seed = prompt, seed
        self.not_computed: dict[str, str] = {}

    def trajectory(self, denoiser: nn.Module, device: torch.device) -> list[QualityScore]:
        """One denoiser call at each kept step, on the reference's own inputs. A step cache has
        nothing to reuse in it: what that does shows in pictures."""
        scores = []
        for step in self._reference.steps():
            args, kwargs = self._reference.inputs(step, device)
            with torch.no_grad():
                found = first_tensor(call_alone(denoiser, args, kwargs))
            value = sqnr_db(self._reference.output(step, device), found)
            scores.append(self._score("sqnr_db", value, step))
        return scores

    def embeddings(self, found: tuple[Any, ...], device: torch.device) -> list[QualityScore]:
        """The worst of the prompt's embeddings."""
        values = [
            sqnr_db(wanted, found[number].to(device))
            for number, wanted in self._reference.embeddings(device).items()
            if float(wanted.float().abs().sum()) > 0.0
        ]
        return [self._score("embedding_sqnr_db", min(values))] if values else []

    def picture(self, image: torch.Tensor) -> list[QualityScore]:
        """PSNR, SSIM and, where they can be computed, PSNR's gain over another seed and LPIPS of
        pictures in [0, 1], shape (batch, channels, height, width)."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        wanted, found = self._reference.image().float(), image.detach().cpu().float()
        if not bool(torch.isfinite(found).all()):
            raise NotFiniteError("the picture is not finite")
        psnr = psnr_db(found, wanted)
        ssim = structural_similarity_index_measure(found, wanted, data_range=(0.0, 1.0))
        mean = ssim[0] if isinstance(ssim, tuple) else ssim
        scores = [self._score("psnr_db", psnr), self._score("ssim", float(mean))]
        other = self._reference.other_seed()
        if other is not None:
            scores.append(self._score("psnr_gain_db", psnr - psnr_db(other.float(), wanted)))
        try:
            scores.append(self._score("lpips", lpips(found, wanted)))
        except CannotScoreError as reason:
            self.not_computed["lpips"] = str(reason)
        return scores

    def _score(self, metric: Metric, value: float, step: int | None = None) -> QualityScore:
        return QualityScore(
            metric=metric,
            value=value,
            seed=self._seed,
            prompt=self._prompt,
            shape=self._shape,
            step=step,
        )
