"""A scatter plot as inline SVG: points, axes that start at zero, a note on each point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50
TICKS = 5


@dataclass(frozen=True)
class Point:
    """`kind` is a CSS class; `note` is shown when the pointer rests on the point."""

    x: float
    y: float
    kind: str
    note: str


@dataclass(frozen=True)
class Line:
    """A vertical line, such as a budget."""

    x: float
    note: str


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, line: Line | None) -> str:
    """The plot as one `<svg>` element; an empty string without points."""
    if not points:
        return ""
    x_top = ceiling(max([point.x for point in points] + ([line.x] if line else [])))
    y_top = ceiling(max(point.y for point in points))
    parts = [
        *_axes(x_top, y_top, x_label, y_label),
        *_marker(line, x_top),
        *_dots(points, x_top, y_top),
    ]
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def ceiling(value: float) -> float:
    """The next of 1, 2, 2.5 or 5 times a power of ten, so that ticks are round numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _across(x: float, top: float) -> float:
    return LEFT + x / top * (WIDTH - LEFT - RIGHT)


def _down(y: float, top: float) -> float:
    return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)


def _axes(x_top: float, y_top: float, x_label: str, y_label: str) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    for number in range(TICKS + 1):
        x_value, y_value = x_top * number / TICKS, y_top * number / TICKS
        x, y = _across(x_value, x_top), _down(y_value, y_top)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{x_value:g}</text>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{y_value:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    turned = f'transform="translate(16 {HEIGHT / 2}) rotate(-90)"'
    yield f'<text {turned} text-anchor="middle">{escape(y_label)}</text>'


def _marker(line: Line | None, x_top: float) -> Iterator[str]:
    if line is not None:
        x, floor = _across(line.x, x_top), HEIGHT - BOTTOM
        yield f'<line class="budget" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}">'
        yield f"<title>{escape(line.note)}</title></line>"


def _dots(points: Iterable[Point], x_top: float, y_top: float) -> Iterator[str]:
    for point in points:
        x, y = _across(point.x, x_top), _down(point.y, y_top)
        note = f"<title>{escape(point.note)}</title>"
        kind = escape(point.kind)
        yield f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{note}</circle>'
