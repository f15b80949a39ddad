"""Draws scenes as signed distance fields, antialiased, a batch at a time, on any device.

Lengths are in units of half the picture's width; y points downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.train_tiny.layout import SceneBatch
from examples.train_tiny.scenes import SHAPES, TEXTURES

STRIPE_PERIOD = 0.115
DOT_PERIOD = 0.13
DOT_RADIUS = 0.036
STRIPE_LIGHT = 0.75
DOT_DARK = 0.65


def draw(batch: SceneBatch, pixels: int, device: torch.device) -> Tensor:
    """Pictures [N, 3, pixels, pixels] in -1..1, float32.

    Figures of a scene do not overlap, so that adding each one's difference to the background
    composes them, in any order and with equal results.
    """
    backgrounds = on_device(batch.backgrounds, device)
    picture = backgrounds[:, :, None, None].expand(-1, -1, pixels, pixels).clone()
    for shape, distance in enumerate(DISTANCES):
        chosen = np.flatnonzero(batch.kinds[:, 1] == shape)
        if len(chosen):
            figures = on_device(batch.figures[chosen], device)
            kinds = on_device(batch.kinds[chosen], device)
            behind = backgrounds[kinds[:, 0]]
            picture.index_add_(0, kinds[:, 0], _layer(figures, kinds, behind, distance, pixels))
    return picture * 2 - 1


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of `array` that does not wait for what the device still has to do.

    Safe with pageable memory: the driver has taken its copy when the call returns.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


def _layer(
    figures: Tensor,
    kinds: Tensor,
    behind: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    pixels: int,
) -> Tensor:
    """[K, 3, pixels, pixels]: what each figure changes of its background."""
    x, y, radius, angle = (part[:, None, None] for part in figures[:, :4].unbind(1))
    axis = (torch.arange(pixels, device=figures.device) + 0.5) * (2 / pixels) - 1
    across, down = axis[None, None, :] - x, axis[None, :, None] - y
    u = (across * angle.cos() + down * angle.sin()) / radius
    v = (down * angle.cos() - across * angle.sin()) / radius
    coverage = _sharp(-distance(u, v) * radius, pixels)
    paint = _painted(figures[:, 4:, None, None], kinds[:, 2], (u * radius, v * radius), pixels)
    return coverage[:, None] * (paint - behind[:, :, None, None])


def _painted(colour: Tensor, texture: Tensor, place: tuple[Tensor, Tensor], pixels: int) -> Tensor:
    """`colour` [K, 3, 1, 1] with light stripes or dark dots where `texture` [K] says so."""
    u, v = place
    wave = torch.sin(v * (2 * math.pi / STRIPE_PERIOD)) * (STRIPE_PERIOD / (2 * math.pi))
    nearest = (part - DOT_PERIOD * torch.round(part / DOT_PERIOD) for part in (u, v))
    dots = DOT_RADIUS - torch.hypot(*nearest)
    light = _sharp(wave, pixels) * STRIPE_LIGHT * _is(texture, "striped")
    dark = _sharp(dots, pixels) * DOT_DARK * _is(texture, "dotted")
    return (colour + light[:, None] * (1 - colour)) * (1 - dark[:, None])


def _is(texture: Tensor, name: str) -> Tensor:
    return (texture == TEXTURES.index(name))[:, None, None].float()


def _sharp(inside: Tensor, pixels: int) -> Tensor:
    """The share of a pixel that is covered, from the distance inwards at its centre."""
    return (inside * (pixels / 2) + 0.5).clamp(0, 1)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.86


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    below = v + 0.05
    slope = u.abs() * math.cos(math.pi / 6) - below * math.sin(math.pi / 6)
    return torch.maximum(slope, below) - 0.6


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points: folded into one half of one of them, it is a half-plane."""
    half = math.pi / 5
    angle = torch.atan2(u, -v)
    folded = (torch.remainder(angle + half, 2 * half) - half).abs()
    length = torch.hypot(u, v)
    outer, inner = 1.15, 0.5
    normal = (inner * math.sin(half), outer - inner * math.cos(half))
    from_tip = length * folded.cos() - outer
    return (from_tip * normal[0] + length * folded.sin() * normal[1]) / math.hypot(*normal)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.76).abs() - 0.26


def _cross(u: Tensor, v: Tensor) -> Tensor:
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.maximum(long - 1.02, short - 0.32)


DISTANCES = tuple(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "star": _star,
        "ring": _ring,
        "cross": _cross,
    }[shape]
    for shape in SHAPES
)
"""Signed distance near the edge, negative inside, of each shape at radius 1, upright."""
