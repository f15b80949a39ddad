"""Trains the VAE: L1, L1 of the differences between neighbours, and a little KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from examples.train_tiny.feed import Feed
from examples.train_tiny.hardware import Hardware
from examples.train_tiny.shapes import draw
from examples.train_tiny.sizes import Size
from examples.train_tiny.timebox import Journal, Stage, learning_rate

KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5
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
            difference, edges, kl = losses(vae, pictures)
        optimizer.zero_grad(set_to_none=True)
        (difference + EDGE_WEIGHT * edges + KL_WEIGHT * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % NOTED_EVERY == 0:
            journal.note("vae", step, l1=difference.item(), edges=edges.item(), kl=kl.item())
    vae.eval().requires_grad_(False)
    _normalise(vae, draw(next(batches), size.pixels, hardware.device), hardware)


def losses(vae: Any, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1 and edge loss in units of the pictures' -1..1, and KL per latent element."""
    latents = vae.encode(pictures).latent_dist
    drawn = vae.decode(latents.sample()).sample.float()
    kl = latents.kl().mean() / latents.mean[0].numel()
    return (drawn - pictures).abs().mean(), _edges(drawn - pictures), kl


def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Latents as the denoiser sees them: of mean 0 and standard deviation 1 over all."""
    latents: Tensor = vae.encode(pictures).latent_dist.mode().float()
    scaled: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


def _edges(difference: Tensor) -> Tensor:
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


def _normalise(vae: Any, pictures: Tensor, hardware: Hardware) -> None:
    with torch.no_grad(), hardware.autocast():
        latents = vae.encode(pictures).latent_dist.mode().float()
    mean, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=round(mean, 5), scaling_factor=round(1 / deviation, 5))
