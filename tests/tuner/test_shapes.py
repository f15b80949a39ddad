"""Sizes become a workload; what a model cannot make is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import InvalidInput
from registry.workload import Shape
from tuner.shapes import require_factor, shapes_of, workload_of


def test_width_comes_first_for_people_and_repeats_are_dropped() -> None:
    shapes = shapes_of([(1024, 768), (512, 512), (1024, 768)], [1, 4, 1])
    assert [shape.label for shape in shapes] == [
        "1024x768",
        "1024x768 batch 4",
        "512x512",
        "512x512 batch 4",
    ]
    assert shapes[0].height == 768


def test_one_workload_holds_them_all_in_its_own_order() -> None:
    workload = workload_of([(1024, 1024), (512, 512)], [1])
    assert workload.label == "512x512, 1024x1024"
    assert workload == workload_of([(512, 512), (1024, 1024)], [1])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_that_is_none_is_refused(batch_size: int) -> None:
    with pytest.raises(InvalidInput, match=f"batch size {batch_size} is not"):
        shapes_of([(64, 64)], [batch_size])


@pytest.mark.parametrize("number", ["64", 64.0, True, None])
def test_what_is_not_a_whole_number_is_refused_by_name(number: Any) -> None:
    for size, batch_size in (((number, 64), 1), ((64, number), 1), ((64, 64), number)):
        with pytest.raises(InvalidInput, match=f"{number!r} is not a whole number"):
            shapes_of([size], [batch_size])


@pytest.mark.parametrize("size", [(0, 64), (64, -8)])
def test_a_size_that_is_none_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=f"{size[0]}x{size[1]} is not a picture size"):
        shapes_of([size], [1])


@pytest.mark.parametrize(
    ("width", "height", "near"), [(1000, 1024, "992x1024"), (7, 1024, "16x1024")]
)
def test_a_size_off_the_models_factor_is_refused_with_the_nearest(
    width: int, height: int, near: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{width}x{height} cannot be made by flux") as refused:
        require_factor([Shape(height=height, width=width)], 16, "flux-dev")
    assert refused.value.hint == f"The nearest size is {near}."


def test_a_size_on_the_factor_passes() -> None:
    require_factor([Shape(height=1024, width=768)], 16, "flux-dev")
