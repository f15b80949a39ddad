"""Which blocks stream: how many, how evenly, and when none is worth it."""

from __future__ import annotations

from itertools import compress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry.plan import Quantization, StreamedBlocks
from tests.tuner.flux import shipped
from tuner.blocks import blocks_of, can_stream
from tuner.spread import slot_bytes, streamed_blocks

DOUBLE, SINGLE = 340, 142
FLUX_KINDS = ["double"] * 19 + ["single"] * 38
FLUX_SIZES = [DOUBLE] * 19 + [SINGLE] * 38
KINDS = st.lists(st.sampled_from("abc"), max_size=60)


def flux(resident: int, slots: int = 2) -> tuple[bool, ...]:
    return streamed_blocks(FLUX_KINDS, FLUX_SIZES, resident, slots)


def test_without_resident_blocks_all_stream() -> None:
    assert flux(0) == (True,) * 57


@pytest.mark.parametrize("resident", [14, 28, 42])
def test_bytes_come_evenly_along_the_way(resident: int) -> None:
    """At any point of a step the bytes copied so far are near their share, or all that is there."""
    streamed = flux(resident)
    assert sum(streamed) == 57 - resident
    total = sum(compress(FLUX_SIZES, streamed))
    so_far = 0
    for number, (size, moves) in enumerate(zip(FLUX_SIZES, streamed, strict=True)):
        so_far += size * moves
        saturated = all(streamed[19:]) or sum(streamed[19:]) >= 36
        if not saturated:
            assert abs(so_far - total * (number + 1) / 57) <= 2 * DOUBLE


def test_heavy_blocks_stay_first() -> None:
    streamed = flux(28)
    assert sum(streamed[:19]) / 19 < sum(streamed[19:]) / 38


def test_resident_ones_lie_between_streamed_ones() -> None:
    streamed = streamed_blocks(["a"] * 12, [1] * 12, 6, 2)
    assert streamed == (True, False) * 6


def test_a_kind_that_fits_in_its_slots_stays() -> None:
    assert streamed_blocks(["a", "a", "b", "b", "b"], [1] * 5, 0, 2) == (False,) * 2 + (True,) * 3
    assert not any(flux(55))
    assert not any(streamed_blocks(["a"] * 4, [1] * 4, 0, 4))


@given(KINDS, st.integers(0, 70), st.integers(2, 4), st.data())
def test_at_least_as_many_stay_as_asked_for(
    kinds: list[str], resident: int, slots: int, data: st.DataObject
) -> None:
    size_of = {kind: data.draw(st.integers(0, 1000)) for kind in "abc"}
    sizes = [size_of[kind] for kind in kinds]
    streamed = streamed_blocks(kinds, sizes, resident, slots)
    assert len(streamed) == len(kinds)
    assert sum(streamed) <= max(len(kinds) - resident, 0)
    kept_whole = len(kinds) - resident - sum(streamed)
    assert kept_whole <= 3 * slots or resident > len(kinds)
    for kind in set(kinds):
        own = sum(moves for name, moves in zip(kinds, streamed, strict=True) if name == kind)
        assert own == 0 or own > slots


@given(KINDS, st.integers(0, 60))
@example(["a"] * 7 + ["b"] * 5 + ["c"] * 2, 5)
def test_the_choice_depends_on_relative_sizes_alone(kinds: list[str], resident: int) -> None:
    sizes = [{"a": 1, "b": 2, "c": 5}[kind] for kind in kinds]
    larger = [1_000_000 * size for size in sizes]
    assert streamed_blocks(kinds, sizes, resident, 2) == streamed_blocks(kinds, larger, resident, 2)


def test_slots_are_as_large_as_the_largest_streamed_block() -> None:
    found = slot_bytes(["a", "a", "a", "b"], [3, 5, 9, 4], [True, True, False, False], 2)
    assert found == {"a": 10}
    assert slot_bytes(FLUX_KINDS, FLUX_SIZES, flux(0), 3) == {"double": 1020, "single": 426}


@pytest.mark.parametrize("name", ["flux-dev", "sdxl", "tiny-flux", "tiny-sdxl"])
@pytest.mark.parametrize("resident", [0, 1, 50, 1000])
def test_a_component_can_stream_if_a_block_of_it_would(name: str, resident: int) -> None:
    for component in shipped(name).components:
        blocks = blocks_of(component, (), Quantization(), "bfloat16")
        for slots in (2, 3, 4):
            placement = StreamedBlocks(resident_blocks=resident, slots=slots)
            assert can_stream(component, placement) is any(blocks.streamed(placement))
