"""Planted damage: what a broken kernel, cast or configuration does to a pipeline, done on purpose.

Each takes a pipeline and the number of a batch, and lasts as long as its context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

Planting = Callable[[Any, int], AbstractContextManager[None]]
"""Called with a pipeline and the number of a batch."""

OVERFLOWING = 1e5
"""Times the activations of a VAE, float16 has no numbers for them."""
SHIFT = 2.0
"""The scheduler's, with which the model was trained."""


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """`weight` [rows, columns] to the nearest of 2^bits - 1 levels, one symmetric scale a row."""
    levels = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / levels
    levelled: torch.Tensor = (weight.float() / scale).round() * scale
    return levelled.to(weight.dtype)


def round_linear(module: nn.Module, bits: int) -> None:
    """Every linear layer's weight in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = rounded(layer.weight.data, bits)


def blocks(pipe: Any) -> list[nn.Module]:
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


@contextmanager
def block_at_3_bits(pipe: Any, batch: int) -> Iterator[None]:
    """All linear layers of one block, another one for each batch."""
    block = blocks(pipe)[batch % len(blocks(pipe))]
    with _restored(block):
        round_linear(block, bits=3)
        yield


@contextmanager
def swapped_channels(pipe: Any, batch: int) -> Iterator[None]:
    """Neighbouring channels of one block's attention values change places."""
    block: Any = blocks(pipe)[batch % len(blocks(pipe))]
    with _restored(block):
        for parameter in block.attn.to_v.parameters():
            parameter.data = parameter.data.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        yield


@contextmanager
def swapped_colours(pipe: Any, _: int) -> Iterator[None]:
    """Red and blue change places in the VAE's last layer."""
    last = pipe.vae.decoder.conv_out
    with _restored(last):
        for parameter in last.parameters():
            parameter.data = parameter.data.flip(0)
        yield


@contextmanager
def overflowing_vae(pipe: Any, _: int) -> Iterator[None]:
    """A VAE in float16 whose activations are over 65,504."""
    kept = pipe.vae
    vae = copy.deepcopy(kept).to(torch.float16)
    decode = vae.decode
    for parameter in vae.decoder.conv_in.parameters():
        parameter.data = parameter.data * OVERFLOWING
    vae.decode = lambda latents, **options: decode(latents.half(), **options)
    pipe.vae = vae
    try:
        yield
    finally:
        pipe.vae = kept


def nan_at_last_of(steps: int) -> Planting:
    """One NaN in the denoiser's output at the last timestep of a request of `steps`."""
    last = SHIFT / (steps + SHIFT - 1)

    @contextmanager
    def planted(pipe: Any, _: int) -> Iterator[None]:
        def plant(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if float(kwargs["timestep"].flatten()[0]) < 1.2 * last:
                output[0][..., 0, 0] = float("nan")
            return output

        handle = pipe.transformer.register_forward_hook(plant, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    return planted


def scheduler_shift(shift: float) -> Planting:
    """Another shift than the model was trained for."""

    @contextmanager
    def planted(pipe: Any, _: int) -> Iterator[None]:
        kept = pipe.scheduler
        pipe.scheduler = type(kept).from_config(kept.config, shift=shift)
        try:
            yield
        finally:
            pipe.scheduler = kept

    return planted


@contextmanager
def text_at_2_bits(pipe: Any, _: int) -> Iterator[None]:
    """All linear layers of both text encoders."""
    with _restored(pipe.text_encoder), _restored(pipe.text_encoder_2):
        round_linear(pipe.text_encoder, bits=2)
        round_linear(pipe.text_encoder_2, bits=2)
        yield


@contextmanager
def denoiser_at_4_bits(pipe: Any, _: int) -> Iterator[None]:
    """All linear layers of the blocks: no damage, but more than any scheme of a plan does."""
    with _restored(pipe.transformer):
        for block in blocks(pipe):
            round_linear(block, bits=4)
        yield


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    kept = {name: parameter.data for name, parameter in module.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = kept[name]
