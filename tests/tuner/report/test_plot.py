"""The scatter plot is well-formed SVG, its points lie where they should, its text is escaped."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tuner.report.plot import Line, Point, ceiling, scatter

POINTS = (Point(10, 100, "denoiser", "a < b"), Point(20, 50, "replay", "best"))


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.7, 1), (1, 1), (1.1, 2), (2.2, 2.5), (3, 5), (6, 10), (101, 200)]
)
def test_axes_end_at_a_round_number(value: float, top: float) -> None:
    assert ceiling(value) == pytest.approx(top)


def test_points_and_budget_are_drawn_in_proportion() -> None:
    svg = ET.fromstring(scatter(POINTS, x_label="GB", y_label="ms & more", line=Line(20, "budget")))
    first, second = svg.findall("circle")
    assert (first.get("class"), second.get("class")) == ("denoiser", "replay")
    assert float(first.get("cx", "")) < float(second.get("cx", ""))
    assert float(first.get("cy", "")) < float(second.get("cy", ""))
    (budget,) = [line for line in svg.findall("line") if line.get("class") == "budget"]
    assert budget.get("x1") == second.get("cx")
    assert first.findtext("title") == "a < b"
    assert "ms & more" in [text.text for text in svg.findall("text")]


def test_the_budget_widens_the_axis() -> None:
    narrow = ET.fromstring(scatter(POINTS, x_label="", y_label="", line=None))
    wide = ET.fromstring(scatter(POINTS, x_label="", y_label="", line=Line(80, "")))
    place = [svg.findall("circle")[1].get("cx", "") for svg in (narrow, wide)]
    assert float(place[1]) < float(place[0])


def test_nothing_to_draw() -> None:
    assert scatter((), x_label="", y_label="", line=None) == ""
