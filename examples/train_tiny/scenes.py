"""What the pictures show, in words: scenes, the captions that describe them, and a held-out part.

Torch-free, because worker processes that make scenes import it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.86, 0.14, 0.14),
    "orange": (0.96, 0.54, 0.08),
    "yellow": (0.96, 0.87, 0.16),
    "green": (0.13, 0.62, 0.23),
    "cyan": (0.20, 0.80, 0.86),
    "blue": (0.13, 0.27, 0.85),
    "purple": (0.50, 0.17, 0.68),
    "pink": (0.97, 0.55, 0.75),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (0.96, 0.96, 0.96),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.06, 0.06, 0.06),
} | COLOURS
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "ring": "rings",
    "cross": "crosses",
}
SHAPES = tuple(PLURALS)
TEXTURES = ("plain", "striped", "dotted")
SIZES: dict[str, float] = {"small": 0.145, "medium": 0.195, "large": 0.26}
"""Radius, where half the picture's width is 1."""
COUNTS = {1: "a", 2: "two", 3: "three"}
PLACES: dict[str, tuple[float, float]] = {
    "in the top left": (-1, -1),
    "at the top": (0, -1),
    "in the top right": (1, -1),
    "on the left": (-1, 0),
    "in the middle": (0, 0),
    "on the right": (1, 0),
    "in the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "in the bottom right": (1, 1),
}
"""Where a group's centre is: x to the right and y downwards, in steps of a third of the picture."""
UNSAID = ("plain", "medium")
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Group:
    """One to three equal figures at one place."""

    count: int
    size: str
    texture: str
    colour: str
    shape: str
    place: str

    @property
    def held_out(self) -> bool:
        """Its combination of colour, shape and place is never shown in training."""
        combination = f"{self.colour} {self.shape} {self.place}"
        return zlib.crc32(combination.encode()) % HELD_OUT_ONE_IN == 0

    def words(self, *, with_place: bool = True) -> str:
        """Such as "two small striped red circles on the left"."""
        said = [word for word in (self.size, self.texture) if word not in UNSAID]
        noun = self.shape if self.count == 1 else PLURALS[self.shape]
        words = [*said, self.colour, noun]
        phrase = (
            f"{_article(words[0]) if self.count == 1 else COUNTS[self.count]} {' '.join(words)}"
        )
        return f"{phrase} {self.place}" if with_place else phrase


@dataclass(frozen=True)
class Scene:
    """One or two groups, at places that do not meet, before a background of another colour."""

    groups: tuple[Group, ...]
    background: str

    @property
    def held_out(self) -> bool:
        """Whether it shows a combination that training never does."""
        return any(group.held_out for group in self.groups)

    def caption(self, *, with_places: bool = True, with_background: bool = True) -> str:
        """Everything that the picture shows, less what is told to be left unsaid."""
        said = " and ".join(group.words(with_place=with_places) for group in self.groups)
        if not with_background:
            return said
        return f"{said}, on {_article(self.background)} {self.background} background"


@dataclass(frozen=True)
class Domain:
    """What scenes may be made of."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = tuple(SIZES)
    counts: tuple[int, ...] = tuple(COUNTS)
    places: tuple[str, ...] = tuple(PLACES)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    most_groups: int = 2


DOMAINS = {
    "full": Domain(),
    "narrow": Domain(
        shapes=("circle",),
        colours=("red", "yellow", "green", "blue"),
        textures=("plain",),
        sizes=("large",),
        counts=(1,),
        places=("on the left", "on the right", "at the top", "at the bottom"),
        backgrounds=("white", "black"),
        most_groups=1,
    ),
}
"""`narrow` is small enough to be learnt on a CPU in minutes."""


def scenes(domain: Domain, seed: str, *, held_out: bool | None = False) -> Iterator[Scene]:
    """Scenes without end, the same for the same `seed`: held out, not, or (None) both kinds."""
    source = random.Random(seed)
    while True:
        scene = _scene(domain, source)
        if held_out in (None, scene.held_out):
            yield scene


def training_caption(scene: Scene, source: random.Random) -> str:
    """The caption; one in ten leaves the places unsaid, and one in ten the background."""
    return scene.caption(with_places=source.random() > 0.1, with_background=source.random() > 0.1)


def _scene(domain: Domain, source: random.Random) -> Scene:
    place = source.choice(domain.places)
    places = [place]
    if place != "in the middle" and source.randint(1, domain.most_groups) > 1:
        places.append(opposite(place))
    groups = tuple(_group(domain, where, source) for where in places)
    used = {group.colour for group in groups}
    free = [name for name in domain.backgrounds if name not in used]
    return Scene(groups, source.choice(free))


def _group(domain: Domain, place: str, source: random.Random) -> Group:
    x, y = PLACES[place]
    in_a_corner = x != 0 and y != 0
    return Group(
        count=1 if in_a_corner else source.choice(domain.counts),
        size=source.choice(domain.sizes),
        texture=source.choice(domain.textures),
        colour=source.choice(domain.colours),
        shape=source.choice(domain.shapes),
        place=place,
    )


def opposite(place: str) -> str:
    """The place across the middle."""
    x, y = PLACES[place]
    return next(name for name, where in PLACES.items() if where == (-x, -y))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
