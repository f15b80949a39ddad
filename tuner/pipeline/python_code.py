"""Python functions said by what they do: the same in each process, another where they differ."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

PRIMITIVES = (type(None), bool, int, float, str)


def is_constant(value: Any) -> bool:
    """A plain value that a function reads where it stands: in a module, a class or a cell."""
    if isinstance(value, tuple | frozenset):
        return all(map(is_constant, value))
    return type(value) in PRIMITIVES or isinstance(value, enum.Enum)


def said_constant(value: Any) -> str:
    """With its class. A set's order is another one in each process."""
    if isinstance(value, frozenset):
        return f"frozenset{sorted(map(said_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple{list(map(said_constant, value))}"
    return f"{type(value).__name__} {value!r}"


def same_constant(one: Any, other: Any) -> bool:
    """Also in another object."""
    return is_constant(one) and is_constant(other) and said_constant(one) == said_constant(other)


def function_in(value: Any) -> FunctionType | None:
    """What is called in the end: of a property, a static or class method, a cache."""
    for name in ("fget", "__func__", "func"):
        if isinstance(value, property | staticmethod | classmethod | functools.cached_property):
            value = getattr(value, name, value)
    if isinstance(value, FunctionType):
        return value
    wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
    return wrapped if isinstance(wrapped, FunctionType) else None


def said(function: FunctionType) -> list[Any]:
    """What it does, its defaults and the constants that it closes over."""
    named = sorted((function.__kwdefaults__ or {}).items())
    given = [function.__defaults__ or (), *named, *filter(is_constant, _cells(function))]
    return [
        function.__qualname__,
        _code(function.__code__),
        [said_constant(item) if is_constant(item) else _kind(item) for item in given],
    ]


def _kind(value: Any) -> str:
    """Of a default that is no constant. A tuple of several is said one by one."""
    if isinstance(value, tuple):
        return str([said_constant(item) if is_constant(item) else _kind(item) for item in value])
    return f"{type(value).__module__}.{type(value).__qualname__}"


def inner_functions(function: FunctionType) -> Iterator[FunctionType]:
    """What it wraps, closes over and has among its defaults."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for value in (inspect.unwrap(function), *_cells(function), *defaults):
        found = function_in(value)
        if found is not None:
            yield found


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that has no value yet
            continue


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (item for item in code.co_consts if isinstance(item, CodeType))


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in _inner(code):
        yield from names_in(inner)


def _code(code: CodeType) -> list[Any]:
    """Without the folder and the lines where it stands."""
    constants = [said_constant(item) for item in code.co_consts if not isinstance(item, CodeType)]
    return [code.co_code.hex(), list(code.co_names), constants, [_code(i) for i in _inner(code)]]
