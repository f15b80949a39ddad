"""Scenes as arrays: where each figure goes and what it looks like, and what a classifier reads.

Torch-free, like `scenes`. What a caption leaves open varies: exact place, size, angle and shade.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from examples.train_tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Domain,
    Group,
    Scene,
    scenes,
    training_caption,
)

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FROM_THE_MIDDLE = 0.6
APART = 0.64
"""Between the centres of a group's figures: the largest do not touch."""
ATTRIBUTES = ("count", "size", "texture", "colour", "shape")


@dataclass(frozen=True)
class SceneBatch:
    """N scenes with M figures in all.

    `figures` float32 [M, 7]: x, y, radius, angle in radians, red, green, blue.
    `kinds` int64 [M, 3]: scene, shape, texture. `backgrounds` float32 [N, 3].
    `groups` int64 [N, 9, 5]: ATTRIBUTES at each place of PLACES; count 0 and the others -1 where
    there is no group. `behind` int64 [N]: index into BACKGROUNDS.
    """

    captions: tuple[str, ...]
    figures: Floats
    kinds: Integers
    backgrounds: Floats
    groups: Integers
    behind: Integers

    def __len__(self) -> int:
        return len(self.captions)


def training_batch(
    domain: Domain, seed: int, index: int, size: int, *, with_held_out: bool = False
) -> SceneBatch:
    """The batch number `index` of an endless series; worker processes are asked for it."""
    held_out = None if with_held_out else False
    name = f"{seed}/{index}"
    source = random.Random(f"captions/{name}")
    some = list(islice(scenes(domain, f"train/{name}", held_out=held_out), size))
    return lay_out(some, name, [training_caption(scene, source) for scene in some])


def judged_batch(domain: Domain, seed: int, size: int, *, held_out: bool = True) -> SceneBatch:
    """Fully described scenes that training does not use, all of them held out or none."""
    name = f"test/{seed}"
    return lay_out(list(islice(scenes(domain, name, held_out=held_out), size)), name)


def lay_out(some: Sequence[Scene], seed: str, captions: Sequence[str] = ()) -> SceneBatch:
    """Places the figures of `some` with variations by `seed`; full captions if none are given."""
    source = np.random.default_rng(zlib.crc32(seed.encode()))
    rows = [
        (*row, number)
        for number, scene in enumerate(some)
        for group in scene.groups
        for row in _figures(group)
    ]
    table = np.array(rows, dtype=np.float64)
    shades = np.array([BACKGROUNDS[scene.background] for scene in some])
    return SceneBatch(
        captions=tuple(captions) or tuple(scene.caption() for scene in some),
        figures=_varied(table[:, :6], source),
        kinds=table[:, [8, 6, 7]].astype(np.int64),
        backgrounds=_shaded(shades, source),
        groups=np.stack([_labels(scene) for scene in some]),
        behind=np.array([list(BACKGROUNDS).index(scene.background) for scene in some]),
    )


def _figures(group: Group) -> list[tuple[float, ...]]:
    """x, y, radius, colour, shape, texture of each figure: side by side, or stacked at a side."""
    x, y = (FROM_THE_MIDDLE * part for part in PLACES[group.place])
    stacked = x != 0 and y == 0
    look = (*COLOURS[group.colour], SHAPES.index(group.shape), TEXTURES.index(group.texture))
    offsets = (APART * (number - (group.count - 1) / 2) for number in range(group.count))
    radius = SIZES[group.size]
    return [
        (x, y + offset, radius, *look) if stacked else (x + offset, y, radius, *look)
        for offset in offsets
    ]


def _varied(table: NDArray[np.float64], source: np.random.Generator) -> Floats:
    """[M, 6] x, y, radius, red, green, blue -> [M, 7] with an angle, each a little off."""
    figures = len(table)
    centre = table[:, :2] + source.uniform(-0.03, 0.03, (figures, 2))
    radius = table[:, 2:3] * source.uniform(0.95, 1.05, (figures, 1))
    angle = source.uniform(-0.25, 0.25, (figures, 1))
    shade = _shaded(table[:, 3:6], source)
    return np.concatenate([centre, radius, angle, shade], axis=1).astype(np.float32)


def _shaded(colours: NDArray[np.float64], source: np.random.Generator) -> Floats:
    varied = colours + source.uniform(-0.03, 0.03, colours.shape)
    return varied.clip(0, 1).astype(np.float32)


def _labels(scene: Scene) -> Integers:
    labels = np.full((len(PLACES), len(ATTRIBUTES)), -1, dtype=np.int64)
    labels[:, 0] = 0
    for group in scene.groups:
        labels[list(PLACES).index(group.place)] = (
            group.count,
            list(SIZES).index(group.size),
            TEXTURES.index(group.texture),
            list(COLOURS).index(group.colour),
            SHAPES.index(group.shape),
        )
    return labels
