"""Trains the VAE: L1 and square error, L1 of the differences between neighbours, a little KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from examples.train_tiny.feed import Feed
from examples.train_tiny.hardware import Hardware
from examples.train_tiny.shapes import draw
from examples.train_tiny.sizes import Size
from examples.train_tiny.timebox import Journal, Stage, learning_rate

WEIGHTS = {"l1": 1.0, "l2": 1.0, "edges": 0.5, "kl": 3e-4}
"""The square error brings colours in early, while differences are large."""
NOTED_EVERY = 50


def train_autoencoder(
    vae: Any, size: Size, feed: Feed, hardware: Hardware, stage: Stage, journal: Journal
) -> None:
    """Trains `vae` in place until `stage` is over, then gives it the latents' mean and scale."""
    vae.to(hardware.device, memory_format=torch.channels_last).train()
    optimizer = hardware.adam(vae.parameters(), size.vae_rate)
    batches = feed.batches(1, size.vae_batch)
    for step, share in stage.steps():
        hardware.set_rate(optimizer, learning_rate(size.vae_rate, step, share))
        pictures = draw(next(batches), size.pixels, hardware.device)
        with hardware.autocast():
            parts = losses(vae, pictures)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum().backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % NOTED_EVERY == 0:
            journal.note("vae", step, **{name: part.item() for name, part in parts.items()})
    vae.eval().requires_grad_(False)
    _normalise(vae, draw(next(batches), size.pixels, hardware.device), hardware)


def losses(vae: Any, pictures: Tensor) -> dict[str, Tensor]:
    """By the names of WEIGHTS; in units of the pictures' -1..1, and KL per latent element."""
    latents = vae.encode(pictures).latent_dist
    difference = vae.decode(latents.sample()).sample.float() - pictures
    return {
        "l1": difference.abs().mean(),
        "l2": difference.square().mean(),
        "edges": difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean(),
        "kl": latents.kl().mean() / latents.mean[0].numel(),
    }


def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Latents as the denoiser sees them: of mean 0 and standard deviation 1 over all."""
    latents: Tensor = vae.encode(pictures).latent_dist.mode().float()
    scaled: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def _normalise(vae: Any, pictures: Tensor, hardware: Hardware) -> None:
    with torch.no_grad(), hardware.autocast():
        latents = vae.encode(pictures).latent_dist.mode().float()
    mean, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=round(mean, 5), scaling_factor=round(1 / deviation, 5))
