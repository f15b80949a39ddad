"""Reads the one kind of pickle that torchao's autoquant left behind, without unpickling it.

A pickle is a program for a small stack machine. `pickletools` takes it apart, and the machine here
knows only the instructions that build a dictionary of tuples, numbers and names. A name stays a
name: nothing is imported, and the only call is the one that makes a `torch.Size`, which becomes a
tuple. Every other instruction refuses the file.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from registry.errors import InvalidInput

MAX_BYTES = 16 << 20
MAX_STEPS = 1_000_000
MAX_ENTRIES = 50_000
MAX_TUPLE = 8
MAX_TEXT = 200
MAX_DEPTH = 2
"""A key holds sizes, which hold numbers. Tuples that share their parts are small in a file and
endless to walk."""

TORCH_NAMES = frozenset({"Size", "bfloat16", "float16", "float32", "float64", "half", "float"})
SIZE_ARGUMENTS = 1


class Name(NamedTuple):
    """A class or a constant by its name alone."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class _Tuple:
    """`depth` is how many tuples are within each other here."""

    items: tuple[Any, ...]
    depth: int


class _Entries(list[tuple[Any, Any]]):
    """A dictionary as pairs in the file's order: nothing from the file is hashed."""


_MARK = object()
_SIZE = Name("torch", "Size")


class _NotOursError(Exception):
    """What an autoquant cache does not hold."""


def read_pickled_entries(data: bytes) -> list[tuple[Any, Any]]:
    """The pairs of the pickled dictionary: tuples, numbers, None, text and `Name`s.

    Raises InvalidInput for anything else, naming it and where it is.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{len(data)} bytes are more than an autoquant cache has ({MAX_BYTES})")
    machine, position = _Machine(), 0
    try:
        for opcode, argument, at in pickletools.genops(io.BytesIO(data)):
            position = at or 0
            machine.step(opcode.name, argument)
        return [(_plain(key), _plain(value)) for key, value in machine.result()]
    except _NotOursError as error:
        raise InvalidInput(
            f"not an autoquant cache: {error} (byte {position}). Nothing of it was run",
            hint="Give the quantization-cache.pkl that was pickled from torchao's autoquant cache.",
        ) from None
    except ValueError as error:
        raise InvalidInput(f"the pickle is damaged after byte {position}: {error}") from None


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._entries = self._steps = 0

    def step(self, name: str, argument: Any) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _NotOursError(f"it takes more than {MAX_STEPS} steps")
        handler = _HANDLERS.get(name)
        if handler is None:
            raise _NotOursError(f"it uses the instruction {name}")
        handler(self, argument)

    def result(self) -> _Entries:
        found = self.pop()
        if not isinstance(found, _Entries) or self._stack:
            raise _NotOursError("it does not end as one dictionary")
        return found

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise _NotOursError("it takes more values than it made")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        taken: list[Any] = []
        while (value := self.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def remember(self, number: int | None) -> None:
        """Under its number, or in the order of remembering where the file gives none."""
        self._memo[len(self._memo) if number is None else number] = self._stack_top()

    def recall(self, number: int) -> None:
        if number not in self._memo:
            raise _NotOursError(f"it recalls value {number}, which it never made")
        self.push(self._memo[number])

    def add(self, pairs: list[Any]) -> None:
        target = self._stack_top()
        if not isinstance(target, _Entries) or len(pairs) % 2:
            raise _NotOursError("it adds entries to something that is no dictionary")
        self._entries += len(pairs) // 2
        if self._entries > MAX_ENTRIES:
            raise _NotOursError(f"it has more than {MAX_ENTRIES} entries")
        target.extend(zip(pairs[::2], pairs[1::2], strict=True))

    def reduce(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        if called != _SIZE:
            raise _NotOursError(f"it calls {called if isinstance(called, Name) else 'a value'}")
        is_size = isinstance(arguments, _Tuple) and len(arguments.items) == SIZE_ARGUMENTS
        if not is_size or not isinstance(arguments.items[0], _Tuple):
            raise _NotOursError("it makes a size of something else than a tuple")
        self.push(arguments.items[0])

    def _stack_top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _NotOursError("it uses a value that it never made")
        return self._stack[-1]


def _tuple(items: list[Any]) -> _Tuple:
    if len(items) > MAX_TUPLE:
        raise _NotOursError(f"it holds a tuple of {len(items)} values")
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > MAX_DEPTH:
        raise _NotOursError(f"it holds more than {MAX_DEPTH} tuples within each other")
    if any(item is _MARK or isinstance(item, _Entries) for item in items):
        raise _NotOursError("it holds a dictionary within a tuple")
    return _Tuple(tuple(items), depth)


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _NotOursError("it names something by what is not text")
    found = Name(_text(module), _text(name))
    is_torch = module == "torch" and name in TORCH_NAMES
    if not is_torch and not module.startswith("torchao."):
        raise _NotOursError(f"it names {found}")
    return found


def _text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise _NotOursError(f"it holds a text of {len(value)} characters")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, _Tuple):
        return tuple(_plain(item) for item in value.items)
    if isinstance(value, _Entries) or value is _MARK:
        raise _NotOursError("it holds a dictionary within a dictionary")
    return value


def _last(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        machine.push(_tuple([machine.pop() for _ in range(count)][::-1]))

    return step


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push(_name(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(_name(module, name))


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.add([key, value])


def _nothing(_machine: _Machine, _argument: Any) -> None:
    pass


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        lambda machine, value: machine.push(value),
    ),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE"), lambda machine, value: machine.push(_text(value))
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.push(_tuple([])),
    "TUPLE": lambda machine, _: machine.push(_tuple(machine.pop_to_mark())),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _Machine.reduce,
    "EMPTY_DICT": lambda machine, _: machine.push(_Entries()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, number: machine.remember(number)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, number: machine.recall(number)),
}
