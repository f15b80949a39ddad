"""Trains the transformer and both text encoders together by flow matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional

from examples.train_tiny.components import SHIFT, Denoiser
from examples.train_tiny.hardware import Hardware
from examples.train_tiny.latents import Pool
from examples.train_tiny.sizes import Size
from examples.train_tiny.timebox import Journal, Stage, learning_rate
from examples.train_tiny.words import BOS, EOS, PAD, TEXT_TOKENS, UNKNOWN

UNCONDITIONAL = 0.1
UNKNOWN_WORDS = 0.01
LONG_TEXT_EVERY = 10
RENEWED_EVERY = 16
NOTED_EVERY = 50
EMA_DECAY = 0.999


class Training:
    """One denoiser, its optimizer and the moving average of its weights."""

    def __init__(self, denoiser: Denoiser, size: Size, hardware: Hardware) -> None:
        self.denoiser, self._size, self._hardware = denoiser, size, hardware
        denoiser.to(hardware.device).train()
        self._parameters = list(denoiser.parameters())
        self._optimizer = hardware.adam(self._parameters, size.denoiser_rate)
        self._average = EMAModel(
            self._parameters, decay=EMA_DECAY, use_ema_warmup=True, inv_gamma=10.0, foreach=True
        )

    def run(self, pool: Pool, stage: Stage, journal: Journal, check: Callable[[int], None]) -> None:
        """Until `stage` is over. `check` is called after each step, with its number."""
        for step, share in stage.steps():
            if step % RENEWED_EVERY == 0:
                pool.renew()
            rate = learning_rate(self._size.denoiser_rate, step, share, warm_up=200)
            self._hardware.set_rate(self._optimizer, rate)
            loss, norm = self._step(pool, step)
            if step % NOTED_EVERY == 0:
                journal.note("denoiser", step, loss=loss.item(), gradient=norm.item(), rate=rate)
            check(step)

    def averaged(self, make: Callable[[Denoiser], Any]) -> Any:
        """What `make` makes of the denoiser with averaged weights."""
        self._average.store(self._parameters)
        self._average.copy_to(self._parameters)
        try:
            return make(self.denoiser)
        finally:
            self._average.restore(self._parameters)

    def _step(self, pool: Pool, step: int) -> tuple[Tensor, Tensor]:
        count, length = self._shape(step)
        latents, ids = pool.sample(count)
        with self._hardware.autocast():
            loss = flow_loss(self.denoiser, latents, pad_to(length, spoilt(ids)))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._average.step(self._parameters)
        return loss.detach(), norm

    def _shape(self, step: int) -> tuple[int, int]:
        """(pictures, text tokens) of a step: fewer pictures where texts are padded to be long."""
        turn, rest = divmod(step, LONG_TEXT_EVERY)
        if rest or not self._size.long_texts:
            return self._size.batch, TEXT_TOKENS
        length = self._size.long_texts[turn % len(self._size.long_texts)]
        image = self._size.image_tokens
        return max(1, self._size.batch * (image + TEXT_TOKENS) // (image + length)), length


def flow_loss(denoiser: Denoiser, latents: Tensor, ids: Tensor) -> Tensor:
    """The mean square error of the velocity from latents to noise, at one random time each.

    `latents` [N, tokens, channels]; `ids` [N, text tokens], as from the T5 tokenizer.
    """
    sigma = noise_levels(len(latents), latents.device)
    noise = torch.randn_like(latents)
    mixed = torch.lerp(latents, noise, sigma[:, None, None])
    return functional.mse_loss(velocity(denoiser, mixed, ids, sigma).float(), noise - latents)


def velocity(denoiser: Denoiser, mixed: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
    """What the transformer says of `mixed`, called as FluxPipeline calls it."""
    said: Tensor = denoiser.transformer(
        hidden_states=mixed,
        timestep=sigma,
        guidance=None,
        pooled_projections=denoiser.clip(clip_ids(ids)).pooler_output,
        encoder_hidden_states=denoiser.t5(ids).last_hidden_state,
        txt_ids=mixed.new_zeros(ids.shape[1], 3),
        img_ids=image_ids(round(mixed.shape[1] ** 0.5), mixed.device),
        return_dict=False,
    )[0]
    return said


def image_ids(side: int, device: torch.device) -> Tensor:
    """[side², 3]: FluxPipeline's ids of a square picture, without its copy that waits for a GPU."""
    axis = torch.arange(side, device=device, dtype=torch.float32)
    return torch.cartesian_prod(torch.zeros_like(axis[:1]), axis, axis)


def noise_levels(count: int, device: torch.device) -> Tensor:
    """Logit-normal, and for one in eight uniform so that pure noise is seen too; then shifted."""
    level = torch.sigmoid(torch.randn(count, device=device))
    even = torch.rand(count, device=device)
    level = torch.where(torch.rand(count, device=device) < 1 / 8, even, level)
    return SHIFT * level / (1 + (SHIFT - 1) * level)


def spoilt(ids: Tensor) -> Tensor:
    """Some captions emptied, for guidance; some words unknown, so that other words do no harm."""
    unknown = (torch.rand_like(ids, dtype=torch.float32) < UNKNOWN_WORDS) & (ids > UNKNOWN)
    ids = ids.masked_fill(unknown, UNKNOWN)
    empty = torch.full_like(ids[:1], PAD)
    empty[:, 0] = EOS
    dropped = torch.rand(len(ids), 1, device=ids.device) < UNCONDITIONAL
    return torch.where(dropped, empty, ids)


def pad_to(length: int, ids: Tensor) -> Tensor:
    """[N, TEXT_TOKENS] -> [N, length]."""
    return functional.pad(ids, (0, length - ids.shape[1]), value=PAD)


def clip_ids(ids: Tensor) -> Tensor:
    """What the CLIP tokenizer gives for the caption that the T5 tokenizer gave `ids` for."""
    return functional.pad(ids[:, : TEXT_TOKENS - 1], (1, 0), value=BOS)
