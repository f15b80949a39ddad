"""Python code that compiled code was made of, and whether it was replaced since.

Torch guards what it traced: an app that puts another function in a library's place gets what it
wants. Code compiled ahead of time has no guards, so the classes that it was made of are kept here
with all their functions, and what these name, by what they do and by who they are.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import getitem, is_
from types import FunctionType
from typing import Any

from registry.digest import digest
from tuner.pipeline.python_code import (
    function_in,
    inner_functions,
    is_constant,
    names_in,
    said,
    said_constant,
    same_constant,
)

NOT_FOLLOWED = sys.stdlib_module_names | {"torch", "huggingface_hub", "diffusers.utils.hub_utils"}
"""Whose functions are watched, and not looked into: versions of Python and torch are in a plan's
runtime, and what models save themselves by notes things of each process."""
CALLED = ("forward", "__call__")
"""All that is watched of torch's own classes."""
ABSENT = object()
PARTS = ("__code__", "__defaults__", "__kwdefaults__")
"""Of a function, what an app may change in place."""


class CodeSeen:
    """Of one process. What is seen once is watched from then on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[int, tuple[str, Any]] = {}
        self._reader = _Reader()
        self._watch = _Watch()

    def of_class(self, kind: type) -> str:
        """A digest of what the functions of a class and its bases do, torch's apart, and of the
        functions and constants that they name, in this or any other process."""
        return self._once(kind, self._reader.of_class)

    def of_table(self, table: Mapping[Any, Any]) -> str:
        """A digest of the functions in a library's table, as `of_class`."""
        return self._once(table, self._reader.of_table)

    def replaced(self) -> str | None:
        """What an app has put something else in the place of; None while all is as it was seen."""
        if (watch := self._watch).holds():
            return None
        found = watch.difference()
        if found is None:
            with self._lock:
                self._reader.measure()
                self._watch = self._reader.watch()
        return found

    def _once(self, item: Any, read: Callable[[Any], list[Any]]) -> str:
        with self._lock:
            if id(item) not in self._digests:
                found = digest(read(item))
                self._watch = self._reader.watch()
                self._digests[id(item)] = (found, item)
            return self._digests[id(item)][0]


@dataclass(frozen=True)
class _Watch:
    """Columns, so that each call compares them in a few loops that run no Python code."""

    entries: tuple[tuple[Any, ...], ...] = ((),) * 4
    """Tables, names in them, values and labels."""
    sizes: tuple[tuple[Any, ...], ...] = ((),) * 4
    """Classes' tables, how many entries each has, the names of those that are read, and labels."""
    parts: tuple[tuple[Any, ...], ...] = ((),) * 3
    """Functions, names of `PARTS`, and what is there."""

    def holds(self) -> bool:
        """By identity, and by number for what a class may have got in addition."""
        tables, names, values, _ = self.entries
        classes, sizes, _, _ = self.sizes
        functions, parts, before = self.parts
        try:
            return (
                all(map(is_, map(getitem, tables, names), values))
                and tuple(map(len, classes)) == sizes
                and all(map(is_, map(getattr, functions, parts), before))
            )
        except KeyError:
            return False

    def difference(self) -> str | None:
        """The first. None where there is but another object of the same value, or what torch notes
        in a class."""
        for table, name, value, label in zip(*self.entries, strict=True):
            now = table.get(name, ABSENT)
            if now is not value and not same_constant(now, value):
                return str(label)
        for table, _, names, label in zip(*self.sizes, strict=True):
            if added := _read(table) - names:
                return f"{label}.{min(added)}"
        for function, part, before in zip(*self.parts, strict=True):
            if getattr(function, part) is not before:
                return f"{function.__module__}.{function.__qualname__}"
        return None


@dataclass
class _Reader:
    """Goes through the code, and keeps all that it came by."""

    _entries: dict[tuple[int, Any], tuple[Any, ...]] = field(default_factory=dict)
    _sizes: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    _parts: dict[tuple[int, str], tuple[Any, ...]] = field(default_factory=dict)

    def watch(self) -> _Watch:
        kept = (self._entries, self._sizes, self._parts)
        empty = _Watch()
        columns = [tuple(zip(*rows.values(), strict=True)) for rows in kept]
        return _Watch(
            columns[0] or empty.entries, columns[1] or empty.sizes, columns[2] or empty.parts
        )

    def measure(self) -> None:
        """Anew the classes that have got nothing more that is read."""
        for owner, (table, _, names, label) in self._sizes.items():
            size = len(table)
            if not _read(table) - names:
                self._sizes[owner] = (table, size, names, label)

    def of_class(self, kind: type) -> list[Any]:
        return [self._said(list(self._of_one(base))) for base in kind.__mro__]

    def of_table(self, table: Mapping[Any, Any]) -> list[Any]:
        self._count(id(table), table, "attention backend")
        for name, value in table.items():
            self._see(id(table), table, name, f"{value.__module__}.{value.__qualname__}")
        return self._said([(str(name), value) for name, value in table.items()])

    def _of_one(self, kind: type) -> Iterator[tuple[str, Any]]:
        """The functions and constants that stand in this class itself."""
        table, is_own = vars(kind), _is_followed(kind)
        if is_own:
            self._count(id(kind), table, kind.__qualname__)
        for name in sorted(_read(table)):
            value = table[name]
            if is_own or name in CALLED:
                self._see(id(kind), table, name, f"{kind.__qualname__}.{name}")
                yield name, value if is_own else None

    def _said(self, found: list[tuple[str, Any]]) -> list[Any]:
        functions = [item for _, value in found if (item := function_in(value)) is not None]
        constants = [[name, said_constant(value)] for name, value in found if is_constant(value)]
        return [*constants, *self._followed(functions)]

    def _followed(self, first: list[FunctionType]) -> Iterator[Any]:
        """What these functions do, and the functions and constants that they name, each once."""
        waiting, known = list(first), set(map(id, first))
        while waiting:
            function = waiting.pop(0)
            self._keep(function)
            yield said(function)
            named = list(self._named(function))
            yield [[name, said_constant(value)] for name, value in named if is_constant(value)]
            others = filter(None, (function_in(value) for _, value in named))
            for other in (*inner_functions(function), *others):
                if id(other) not in known and _is_followed(other):
                    known.add(id(other))
                    waiting.append(other)

    def _keep(self, function: FunctionType) -> None:
        """Who has no defaults was given all arguments, and would be so again."""
        for part in PARTS:
            if (value := getattr(function, part)) is not None:
                self._parts.setdefault((id(function), part), (function, part, value))
        for name in function.__kwdefaults__ or {}:
            label = f"{function.__module__}.{function.__qualname__}"
            self._see(id(function), function.__kwdefaults__, name, label)

    def _named(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        table = function.__globals__
        for name in sorted(set(names_in(function.__code__))):
            value = table.get(name, ABSENT)
            if _is_read(name, value):
                owner = getattr(value, "__module__", None) or table.get("__name__")
                self._see(id(table), table, name, f"{owner}.{name}")
                yield name, value

    def _count(self, owner: int, table: Any, label: str) -> None:
        self._sizes.setdefault(owner, (table, len(table), _read(table), label))

    def _see(self, owner: int, table: Any, name: Any, label: str) -> None:
        self._entries.setdefault((owner, name), (table, name, table[name], label))


def _is_followed(item: Any) -> bool:
    module = str(item.__module__)
    return module not in NOT_FOLLOWED and module.split(".", maxsplit=1)[0] not in NOT_FOLLOWED


def _is_read(name: str, value: Any) -> bool:
    """A function, or a constant that is no note of Python's own, as `__module__` or `__file__`."""
    is_setting = is_constant(value) and not name.startswith("__")
    return is_setting or function_in(value) is not None


def _read(table: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in list(table.items()) if _is_read(name, value))
