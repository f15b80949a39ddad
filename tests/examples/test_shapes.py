"""Pictures show what captions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.train_tiny.layout import ATTRIBUTES, judged_batch, lay_out, training_batch
from examples.train_tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    DOMAINS,
    PLACES,
    SHAPES,
    TEXTURES,
    Group,
    Scene,
)
from examples.train_tiny.shapes import draw

CPU = torch.device("cpu")
PIXELS = 128
CENTRES = {name: tuple(0.6 * part for part in where) for name, where in PLACES.items()}


def picture_of(*groups: Group, background: str = "white") -> torch.Tensor:
    """[height, width, 3] in 0..1."""
    drawn = draw(lay_out([Scene(groups, background)], "fixed"), PIXELS, CPU)[0]
    return (drawn.permute(1, 2, 0) + 1) / 2


def one(**other: object) -> Group:
    values = {
        "count": 1,
        "size": "large",
        "texture": "plain",
        "colour": "red",
        "shape": "circle",
        "place": "in the middle",
    }
    return Group(**(values | other))  # type: ignore[arg-type]


def changed(picture: torch.Tensor) -> torch.Tensor:
    """[height, width]: where it is not background, by its first pixel."""
    return (picture - picture[0, 0]).abs().amax(2) > 0.1


def like(colour: torch.Tensor, name: str) -> bool:
    return bool((colour - torch.tensor((BACKGROUNDS | COLOURS)[name])).abs().max() < 0.05)


@pytest.mark.parametrize("place", PLACES)
def test_a_figure_lies_where_its_caption_says(place: str) -> None:
    rows, columns = changed(picture_of(one(place=place))).nonzero(as_tuple=True)
    x, y = CENTRES[place]
    assert abs(columns.float().mean() / 64 - 1 - x) < 0.06
    assert abs(rows.float().mean() / 64 - 1 - y) < 0.06


@pytest.mark.parametrize("colour", COLOURS)
def test_figure_and_background_have_the_colours_said(colour: str) -> None:
    picture = picture_of(one(colour=colour), background="black")
    assert like(picture[64, 64], colour)
    assert like(picture[0, 0], "black")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_figures_do_not_touch(count: int, shape: str) -> None:
    drawn = changed(picture_of(one(count=count, shape=shape, place="at the top")))
    filled = drawn.any(0).int()
    assert int((filled.diff() == 1).sum()) + int(filled[0]) == count


def test_figures_at_a_side_are_stacked() -> None:
    drawn = changed(picture_of(one(count=3, place="on the left")))
    assert not drawn[:, 64:].any()
    assert int((drawn.any(1).int().diff() == 1).sum()) == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_differ_by_more_than_they_vary(shape: str) -> None:
    areas = [
        [
            int(changed(draw(batch, PIXELS, CPU)[0].permute(1, 2, 0)).sum())
            for seed in range(8)
            for batch in [lay_out([Scene((one(size=size, shape=shape),), "white")], str(seed))]
        ]
        for size in ("small", "medium", "large")
    ]
    assert max(areas[0]) < min(areas[1])
    assert max(areas[1]) < min(areas[2])


def test_shapes_and_textures_differ() -> None:
    looks = [
        picture_of(one(shape=shape, texture=texture)) for shape in SHAPES for texture in TEXTURES
    ]
    for index, look in enumerate(looks):
        for other in looks[:index]:
            assert (look - other).abs().amax(2).gt(0.1).sum() > 100


def test_edges_are_antialiased() -> None:
    red = picture_of(one(), background="black")[:, :, 0]
    between = (red > 0.15) & (red < 0.75)
    assert 50 < between.sum() < 250


def test_batches_are_the_same_for_the_same_seed_and_number() -> None:
    batch, again = (training_batch(DOMAINS["full"], 3, 5, 32) for _ in range(2))
    assert batch.captions == again.captions
    assert torch.equal(draw(batch, 64, CPU), draw(again, 64, CPU))
    assert training_batch(DOMAINS["full"], 3, 6, 32).captions != batch.captions


def test_a_picture_does_not_depend_on_its_batch() -> None:
    scene = Scene((one(texture="dotted", shape="star"),), "cyan")
    alone = lay_out([scene], "x")
    assert torch.equal(draw(alone, 64, CPU), draw(lay_out([scene], "x"), 64, CPU))
    batch = judged_batch(DOMAINS["full"], 0, 16)
    pictures = draw(batch, 64, CPU)
    assert pictures.shape == (16, 3, 64, 64)
    assert pictures.abs().max() <= 1


def test_labels_say_what_the_caption_says() -> None:
    batch = lay_out([Scene((one(count=2, texture="striped", place="at the top"),), "pink")], "x")
    labels = dict(zip(ATTRIBUTES, batch.groups[0, list(PLACES).index("at the top")], strict=True))
    assert labels["count"] == 2
    assert TEXTURES[labels["texture"]] == "striped"
    assert list(COLOURS)[labels["colour"]] == "red"
    assert SHAPES[labels["shape"]] == "circle"
    assert np.count_nonzero(batch.groups[0, :, 0]) == 1
    assert list(BACKGROUNDS)[batch.behind[0]] == "pink"
