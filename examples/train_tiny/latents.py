"""A pool of encoded pictures with their captions on the device: encoding costs more than training.

It is renewed bit by bit, so that the denoiser never has the time to learn it by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from examples.train_tiny.autoencoder import encode
from examples.train_tiny.feed import Feed
from examples.train_tiny.hardware import Hardware
from examples.train_tiny.layout import SceneBatch
from examples.train_tiny.shapes import draw
from examples.train_tiny.sizes import Size
from examples.train_tiny.words import TEXT_TOKENS, t5_tokenizer


class Pool:
    """`size.pool` pictures as packed latents [tokens, channels] and T5 ids [TEXT_TOKENS]."""

    def __init__(self, vae: Any, size: Size, feed: Feed, hardware: Hardware) -> None:
        self._vae, self._size, self._hardware = vae, size, hardware
        self._chunk = size.chunk
        self._batches: Iterator[SceneBatch] = feed.batches(2, self._chunk)
        self._tokenizer = t5_tokenizer()
        self._next = 0
        first = self._encoded(next(self._batches))
        rows = size.pool // self._chunk * self._chunk
        self._latents, self._ids = (part.new_empty(rows, *part.shape[1:]) for part in first)
        self._put(*first)
        while self._next:
            self.renew()

    def renew(self) -> None:
        """Replaces the oldest chunk."""
        self._put(*self._encoded(next(self._batches)))

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Random latents [count, tokens, channels] float32, and ids [count, TEXT_TOKENS]."""
        rows = torch.randint(len(self._ids), (count,), device=self._ids.device)
        return self._latents[rows].float(), self._ids[rows].long()

    def _put(self, latents: Tensor, ids: Tensor) -> None:
        self._latents[self._next : self._next + self._chunk] = latents
        self._ids[self._next : self._next + self._chunk] = ids
        self._next = (self._next + self._chunk) % len(self._ids)

    def _encoded(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        ids = self._tokenizer(
            list(batch.captions), padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt"
        ).input_ids.to(torch.uint8)
        pictures = draw(batch, self._size.pixels, self._hardware.device)
        with torch.no_grad(), self._hardware.autocast():
            parts = [encode(self._vae, part) for part in pictures.split(256)]
        return pack(torch.cat(parts)).to(torch.bfloat16), ids.to(
            self._hardware.device, non_blocking=True
        )


def pack(latents: Tensor) -> Tensor:
    """[N, channels, height, width] -> [N, height/2 · width/2, 4 · channels], as FluxPipeline."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed
