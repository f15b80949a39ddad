"""Captions say what scenes hold, and a part of all combinations is kept from training."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from examples.train_tiny.scenes import (
    COLOURS,
    DOMAINS,
    PLACES,
    SHAPES,
    Group,
    Scene,
    opposite,
    scenes,
    training_caption,
)

FULL = DOMAINS["full"]


def group(**other: object) -> Group:
    values = {
        "count": 2,
        "size": "small",
        "texture": "plain",
        "colour": "red",
        "shape": "circle",
        "place": "on the left",
    }
    return Group(**(values | other))  # type: ignore[arg-type]


def test_a_caption_says_everything() -> None:
    right = group(count=1, size="large", texture="striped", colour="blue", shape="square")
    scene = Scene((group(), Group(**{**vars(right), "place": "on the right"})), "yellow")
    assert scene.caption() == (
        "two small red circles on the left and a large striped blue square on the right, "
        "on a yellow background"
    )


def test_what_is_usual_stays_unsaid_and_articles_agree() -> None:
    scene = Scene((group(count=1, size="medium", colour="orange"),), "orange")
    assert scene.caption() == "an orange circle on the left, on an orange background"
    assert scene.caption(with_places=False, with_background=False) == "an orange circle"


def test_scenes_are_the_same_for_the_same_seed() -> None:
    assert list(islice(scenes(FULL, "a"), 50)) == list(islice(scenes(FULL, "a"), 50))
    assert list(islice(scenes(FULL, "a"), 50)) != list(islice(scenes(FULL, "b"), 50))


def test_no_training_scene_holds_a_combination_that_is_held_out() -> None:
    shown = {
        (group.colour, group.shape, group.place)
        for scene in islice(scenes(FULL, "train"), 20_000)
        for group in scene.groups
    }
    every = {(c, s, p) for c in COLOURS for s in SHAPES for p in PLACES}
    kept = {each for each in every if group(colour=each[0], shape=each[1], place=each[2]).held_out}
    assert shown == every - kept
    assert 0.08 < len(kept) / len(every) < 0.17
    assert all(scene.held_out for scene in islice(scenes(FULL, "test", held_out=True), 500))


def test_each_word_of_a_held_out_combination_is_known_from_others() -> None:
    shown = [group for scene in islice(scenes(FULL, "train"), 20_000) for group in scene.groups]
    for place in PLACES:
        assert {each.colour for each in shown if each.place == place} == set(COLOURS)
        assert {each.shape for each in shown if each.place == place} == set(SHAPES)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_has_both_parts(name: str) -> None:
    domain = DOMAINS[name]
    held_out = [
        group(colour=colour, shape=shape, place=place).held_out
        for colour in domain.colours
        for shape in domain.shapes
        for place in domain.places
    ]
    assert any(held_out)
    assert not all(held_out)


def test_two_groups_lie_across_from_each_other_before_another_colour() -> None:
    several = [scene for scene in islice(scenes(FULL, "pairs"), 2000) if len(scene.groups) > 1]
    assert len(several) > 500
    for scene in several:
        one, other = scene.groups
        assert other.place == opposite(one.place) != one.place
        assert scene.background not in {one.colour, other.colour}


def test_some_training_captions_leave_things_unsaid() -> None:
    source = random.Random(0)
    some = list(islice(scenes(FULL, "train"), 2000))
    short = [scene for scene in some if training_caption(scene, source) != scene.caption()]
    assert 0.14 < len(short) / len(some) < 0.24
