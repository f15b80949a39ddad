"""Bytes, resolutions and durations as people write them, and back."""

from __future__ import annotations

import re

from registry.errors import InvalidInput

BYTE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_BYTES = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
_RESOLUTION = re.compile(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", re.ASCII)
MAX_SIDE = 99_999
"""Pixels. Far over what any model makes."""
_DURATION_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|h|m|s)\s*", re.ASCII)
_UNIT_BY_LOWER = {unit.lower(): factor for unit, factor in BYTE_UNITS.items()}


def parse_bytes(text: str) -> int:
    """Bytes of "24GB" (10⁹), "22.5 GiB" (2³⁰), "800MB". A number without a unit is refused.

    Raises InvalidInput naming `text`.
    """
    match = _BYTES.fullmatch(text)
    if match is None or (match[2] and match[2].lower() not in _UNIT_BY_LOWER):
        raise InvalidInput(
            f"{text!r} is not an amount of memory",
            hint=f"Write a number and a unit, such as 24GB; units: {', '.join(BYTE_UNITS)}.",
        )
    if not match[2]:
        raise InvalidInput(
            f"{text!r} has no unit",
            hint=f"Write {match[1]}GB (10⁹ bytes) or {match[1]}GiB (2³⁰ bytes).",
        )
    amount = _exact(match[1], _UNIT_BY_LOWER[match[2].lower()])
    if amount < 1:
        raise InvalidInput(f"{text!r} is no memory at all", hint="Give at least one byte.")
    return amount


def parse_resolution(text: str) -> tuple[int, int]:
    """(width, height) in pixels of "1024x768". Raises InvalidInput naming `text`."""
    match = _RESOLUTION.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a resolution",
            hint="Write WIDTHxHEIGHT in pixels, such as 1024x768.",
        )
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidInput(
            f"{text!r} is no size of a picture",
            hint=f"Width and height are pixels, from 1 to {MAX_SIDE}.",
        )
    return width, height


def parse_duration_s(text: str) -> float:
    """Seconds of "90s", "8m" or "1h30m". Raises InvalidInput naming `text`."""
    parts = _DURATION_PART.findall(text)
    whole = _DURATION_PART.sub("", text).strip() == ""
    seconds = sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    units = [unit for _, unit in parts]
    if not parts or not whole or len(set(units)) != len(units):
        raise InvalidInput(
            f"{text!r} is not a duration",
            hint="Write hours, minutes and seconds with their units, such as 90s, 8m or 1h30m.",
        )
    if seconds <= 0:
        raise InvalidInput(f"{text!r} is no time at all", hint="Give at least 1ms.")
    return seconds


def format_bytes(amount: int) -> str:
    """Three digits and a decimal unit: "23.8 GB", "512 MB", "0 B"."""
    for unit in ("TB", "GB", "MB", "KB"):
        if abs(amount) >= BYTE_UNITS[unit]:
            return f"{_three_digits(amount / BYTE_UNITS[unit])} {unit}"
    return f"{amount} B"


def format_seconds(seconds: float) -> str:
    """Short time for people: "8.2 ms", "4.57 s", "3m 20s", "1h 05m"."""
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _exact(number: str, factor: int) -> int:
    whole, _, fraction = number.partition(".")
    return int(whole) * factor + int(fraction.ljust(9, "0")) * factor // 10**9


def _three_digits(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:.{digits}f}"


def exact_bytes(amount: int) -> str:
    """In the largest unit that loses nothing: "24GB", "1536MB", "2147483648B"."""
    for unit, factor in (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20)):
        if amount % factor == 0:
            return f"{amount // factor}{unit}"
    return f"{amount}B"


def how_many(count: int, thing: str) -> str:
    """ "1 plan", "3 plans", for things whose plural takes an s."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
