"""Python code that compiled code was made of, and whether it was replaced since.

Torch guards what it traced: an app that puts another function in a library's place gets what it
wants. Code compiled ahead of time has no guards, so methods of the classes that it was made of, and
the functions that these name, are kept here by what they do and by who they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from registry.digest import digest

MOST_FUNCTIONS = 1000
NOT_FOLLOWED = ("torch", "builtins", "typing")
"""Libraries whose functions are watched, and not looked into: torch's version is in a plan's
runtime."""


class CodeSeen:
    """Of one process. What is seen once is watched from then on."""

    def __init__(self) -> None:
        self._digests: dict[tuple[type, str], str] = {}
        self._methods: list[tuple[type, str, Any]] = []
        self._globals: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}

    def method(self, kind: type, name: str) -> str:
        """A digest of what this method of a class does, and of the Python functions it calls by
        name, in this or any other process."""
        if (kind, name) not in self._digests:
            found = getattr(kind, name, None)
            self._methods.append((kind, name, found))
            functions = list(self._followed(found)) if isinstance(found, FunctionType) else []
            said = [[item.__qualname__, _said(item.__code__)] for item in functions]
            self._digests[kind, name] = digest(said)
        return self._digests[kind, name]

    def replaced(self) -> str | None:
        """What an app has put something else in the place of; None while all is as it was seen."""
        for kind, name, before in self._methods:
            if getattr(kind, name, None) is not before:
                return f"{kind.__qualname__}.{name}"
        for table, name, before in self._globals.values():
            if table.get(name) is not before:
                return f"{before.__module__}.{name}"
        return None

    def _followed(self, first: FunctionType) -> Iterator[FunctionType]:
        """The function, what it wraps, and what they name, each once."""
        waiting, known = [first], {id(first)}
        while waiting and len(known) <= MOST_FUNCTIONS:
            function = waiting.pop(0)
            yield function
            for other in (*_wrapped(function), *self._named(function)):
                if id(other) not in known:
                    known.add(id(other))
                    waiting.append(other)

    def _named(self, function: FunctionType) -> Iterator[FunctionType]:
        table = function.__globals__
        for name in sorted(set(_names(function.__code__))):
            found = table.get(name)
            if not isinstance(found, FunctionType):
                continue
            self._globals[id(table), name] = (table, name, found)
            if found.__module__.split(".")[0] not in NOT_FOLLOWED:
                yield found


def _wrapped(function: FunctionType) -> Iterator[FunctionType]:
    inner = inspect.unwrap(function)
    if isinstance(inner, FunctionType):
        yield inner


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (item for item in code.co_consts if isinstance(item, CodeType))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in _inner(code):
        yield from _names(inner)


def _said(code: CodeType) -> list[Any]:
    """Without the folder and the lines where it stands."""
    constants = [_constant(item) for item in code.co_consts if not isinstance(item, CodeType)]
    return [code.co_code.hex(), list(code.co_names), constants, [_said(i) for i in _inner(code)]]


def _constant(value: Any) -> str:
    """A set's order is another one in each process."""
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))
    return repr(value)
