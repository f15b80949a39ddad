"""Amounts as people write them: what is read, what is refused, and that the value is named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidInput
from tuner import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GB", 24 * 10**9),
        ("24gb", 24 * 10**9),
        (" 24 GB ", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("22.5GiB", 24_159_191_040),
        ("800MB", 800 * 10**6),
        ("800MiB", 800 * 2**20),
        ("1.5TB", 1_500_000_000_000),
        ("512KB", 512_000),
        ("1B", 1),
    ],
)
def test_bytes_are_read(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "24 parsecs",
        "",
        "GB",
        "-24GB",
        "24 GB GB",
        "1e9B",
        "nanGB",
        "infGB",
        "24G B",
        "0GB",
        "٢GB",
        "9" * 5000 + "GB",
    ],
)
def test_bytes_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        units.parse_bytes(text)
    assert repr(text) in refused.value.message
    assert refused.value.hint


def test_bytes_without_a_unit_are_refused_with_both_units_shown() -> None:
    with pytest.raises(InvalidInput, match="'24' has no unit") as refused:
        units.parse_bytes("24")
    assert refused.value.hint is not None
    assert "24GB" in refused.value.hint
    assert "24GiB" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1024x768", (1024, 768)), ("64X64", (64, 64)), ("1024 × 1024", (1024, 1024))],
)
def test_a_resolution_is_width_then_height(text: str, expected: tuple[int, int]) -> None:
    assert units.parse_resolution(text) == expected


@pytest.mark.parametrize(
    "text", ["1024", "1024x", "x1024", "-64x64", "64x64x64", "1024,768", "64.5x64", "ax b"]
)
def test_a_resolution_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a resolution") as refused:
        units.parse_resolution(text)
    assert repr(text) in refused.value.message


@pytest.mark.parametrize("text", ["0x64", "64x0", "100000x64", "64x999999999"])
def test_a_resolution_out_of_all_bounds_is_told_the_bounds(text: str) -> None:
    with pytest.raises(InvalidInput, match=f"'{text}' is no size of a picture") as refused:
        units.parse_resolution(text)
    assert "from 1 to 99999" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8m", 480),
        ("90s", 90),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("1.5h", 5400),
        ("250ms", 0.25),
    ],
)
def test_durations_are_read(text: str, expected: float) -> None:
    assert units.parse_duration_s(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["8", "", "m", "-8m", "8 minutes", "8m8m", "1h-5m", "inf", "8 m x", "m8"]
)
def test_a_duration_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a duration") as refused:
        units.parse_duration_s(text)
    assert repr(text) in refused.value.message


@pytest.mark.parametrize("text", ["0s", "0.0h", "0m0s"])
def test_no_time_is_refused_as_such(text: str) -> None:
    with pytest.raises(InvalidInput, match=f"'{text}' is no time at all"):
        units.parse_duration_s(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (24 * 10**9, "24.0 GB"),
        (23_802_816_640, "23.8 GB"),
        (512_300_000, "512 MB"),
        (2_500_000_000_000, "2.50 TB"),
        (-1_500_000, "-1.50 MB"),
    ],
)
def test_bytes_are_shown_with_three_digits(amount: int, text: str) -> None:
    assert units.format_bytes(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0082, "8.20 ms"), (0.1767, "177 ms"), (4.571, "4.57 s"), (200, "3m 20s"), (3900, "1h 05m")],
)
def test_seconds_are_shown_short(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


def test_just_under_a_minute_and_an_hour_do_not_show_sixty() -> None:
    assert units.format_seconds(59.99) == "1m 00s"
    assert units.format_seconds(3599.7) == "1h 00m"


@given(st.integers(min_value=1, max_value=10**15 - 1), st.sampled_from(sorted(units.BYTE_UNITS)))
def test_whole_amounts_are_exact(amount: int, unit: str) -> None:
    assert units.parse_bytes(f"{amount}{unit}") == amount * units.BYTE_UNITS[unit]


@pytest.mark.parametrize(
    "parse", [units.parse_bytes, units.parse_resolution, units.parse_duration_s]
)
@given(text=st.text(max_size=12))
def test_no_text_breaks_a_parser(parse: Callable[[str], object], text: str) -> None:
    with suppress(InvalidInput):
        assert parse(text)


@pytest.mark.parametrize(("count", "text"), [(0, "0 plans"), (1, "1 plan"), (2, "2 plans")])
def test_one_thing_has_no_s(count: int, text: str) -> None:
    assert units.how_many(count, "plan") == text
