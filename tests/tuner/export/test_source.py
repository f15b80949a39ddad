from __future__ import annotations

import ast

import pytest

from tuner.export.source import call, literal, module_of, source_of


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


def test_a_whole_module_leaves_out_what_it_imports_from_here() -> None:
    text = """\"Docstring.\"
from __future__ import annotations
import os
from a import b
from tuner.x import y

SIZE = 3
\"What it is.\"

@b
def f() -> int:  # type: ignore[misc]
    # A reason.
    return SIZE

class C:
    x: int = 1
"""
    part = module_of(text)
    assert part.imports == (("os", ""), ("a", "b"))
    assert part.definitions == (
        "SIZE = 3",
        "@b\ndef f() -> int:\n    # A reason.\n    return SIZE",
        "class C:\n    x: int = 1",
    )
