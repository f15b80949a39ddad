from __future__ import annotations

import ast

import pytest

from tuner.export.source import call, literal, source_of


def test_literals() -> None:
    for value in ("", "a'b", 'a"b', "a'b\"c", "\\", "\n", "é", "\u202e", 3, True, 1.0):
        assert ast.literal_eval(literal(value)) == value
        assert literal(value).isprintable()
    assert literal("it") == '"it"'


def test_long_calls_are_broken_where_a_formatter_would() -> None:
    assert call("f", "a", b="1") == "f(a, b=1)"
    inner = call("g" * 60, "x" * 60)
    assert call("f", inner) == (f"f(\n    {'g' * 60}(\n        {'x' * 60},\n    ),\n)")


def test_only_the_class_asked_for_is_taken_from_a_source() -> None:
    text = "import os\nfrom a import b\n\nclass C:  # type: ignore[misc]\n    x = 1\n\nY = 2\n"
    part = source_of(text, "C")
    assert part.definitions == ("class C:\n    x = 1",)
    assert part.imports == (("os", ""), ("a", "b"))
    with pytest.raises(KeyError):
        source_of(text, "D")
