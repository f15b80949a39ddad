"""Python source put together from parts, out of values that may come from a stranger.

A value enters as a literal, a name only if it is an identifier: neither can end a line or a string.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from textwrap import indent

from registry.errors import InvalidInput

WIDTH = 100
ARGUMENT_ROOM = WIDTH - len("    options=,")
"""Columns that an argument's value may take on a line of its own."""
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TYPE_COMMENT = re.compile(r"  # type: ignore\[[\w-]+\]")
OWN = ("__future__", "tuner", "registry")
"""What a script does not import."""
UNPRINTED = re.compile(r"[^A-Za-z0-9 ./@+_()-]")


@dataclass(frozen=True)
class Part:
    """A step of a script: its lines, and what they need above them.

    `imports` are (module, name) pairs, the name "" for the module itself. `early` lines come before
    any library is imported; each definition is a whole function, class or constant.
    """

    lines: tuple[str, ...] = ()
    imports: tuple[tuple[str, str], ...] = ()
    definitions: tuple[str, ...] = ()
    early: tuple[str, ...] = ()


def literal(value: str | bool | float) -> str:
    """A Python literal in ASCII or printable characters, in double quotes where that is simple."""
    text = repr(value)
    if text.startswith("'") and '"' not in text:
        return f'"{text[1:-1]}"'
    return text


def identifier(name: str) -> str:
    """`name`, which may stand in a script as it is. Raises InvalidInput."""
    if not IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidInput(f"{name!r} cannot be a name in a Python script")
    return name


def component(name: str) -> str:
    """A component of the script's pipeline. Raises InvalidInput."""
    return f"pipe.{identifier(name)}"


def prose(text: str) -> str:
    """`text` for a docstring: what could end one, or a line, becomes a question mark."""
    return UNPRINTED.sub("?", text)


def call(target: str, *arguments: str, **keywords: str) -> str:
    """A call over one line, or with one argument a line where it would be too long."""
    every = [*arguments, *(f"{name}={value}" for name, value in keywords.items())]
    return enclosed(f"{target}(", every, ")")


def enclosed(start: str, items: Iterable[str], end: str, *, room: int = WIDTH) -> str:
    """Items between brackets on one line of at most `room` characters, or one item a line."""
    every = list(items)
    one = f"{start}{', '.join(every)}{end}"
    return one if len(one) <= room and "\n" not in one else _exploded(start, every, end)


def strings(values: Iterable[str], *, room: int) -> str:
    """A tuple of strings."""
    every = [literal(value) for value in values]
    return enclosed("(", every, ",)" if len(every) == 1 else ")", room=room)


def _exploded(start: str, items: Iterable[str], end: str) -> str:
    inner = "".join(indent(f"{item},\n", "    ") for item in items)
    return f"{start}\n{inner}{end.lstrip(',')}"


def source_of(text: str, name: str) -> Part:
    """One class or function of a module's source as it stands there, with the module's imports.

    Comments for type checkers are dropped. Raises KeyError where the module defines no such name.
    """
    imports: list[tuple[str, str]] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            imports += [(item.name, "") for item in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            imports += [(str(node.module), item.name) for item in node.names]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            found = TYPE_COMMENT.sub("", str(ast.get_source_segment(text, node)))
            return Part(imports=tuple(imports), definitions=(found,))
    raise KeyError(name)


def module_of(text: str) -> Part:
    """All of a module's source but its own docstring and what it imports from this project."""
    imports: list[tuple[str, str]] = []
    definitions: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            imports += [(item.name, "") for item in node.names]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] not in OWN:
            imports += [(str(node.module), item.name) for item in node.names]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            definitions.append(_plain(text, node, node.lineno))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            definitions.append(_plain(text, node, first))
    return Part(imports=tuple(imports), definitions=tuple(definitions))


def _plain(text: str, node: ast.stmt, first: int) -> str:
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return TYPE_COMMENT.sub("", "\n".join(lines))


def assemble(docstring: str, parts: Iterable[Part]) -> str:
    """The whole script; imports and definitions are written once, however many parts ask."""
    every = tuple(parts)
    imports = {item for part in every for item in part.imports}
    standard = {item for item in imports if item[0].split(".")[0] in sys.stdlib_module_names}
    early = tuple(line for part in every for line in part.early)
    definitions = tuple(dict.fromkeys(chain.from_iterable(part.definitions for part in every)))
    head = [_imports(standard), "\n".join(early), _imports(imports - standard)]
    constants = [item for item in definitions if not _is_block(item)]
    blocks = [item for item in definitions if _is_block(item)]
    body = ["\n".join(part.lines) for part in every if part.lines]
    top = _joined("\n\n", [f'"""{docstring}"""', *head, "\n".join(constants)])
    return _joined("\n\n\n" if blocks else "\n\n", [top, *blocks, _joined("\n\n", body)]) + "\n"


def _joined(between: str, texts: Iterable[str]) -> str:
    return between.join(text for text in texts if text)


def _is_block(definition: str) -> bool:
    return definition.startswith(("def ", "class ", "@"))


def _imports(items: Iterable[tuple[str, str]]) -> str:
    """Sorted as isort does: modules first, then names; constants, classes, functions."""
    names: dict[str, list[str]] = {}
    for module, name in items:
        names.setdefault(module, []).extend([name] if name else [])
    whole = sorted({module for module, name in items if not name})
    lines = [f"import {module}" for module in whole]
    named = sorted(module for module, found in names.items() if found)
    lines += [_import_line(module, sorted(names[module], key=_member_order)) for module in named]
    return "\n".join(lines)


def _import_line(module: str, names: list[str]) -> str:
    one = f"from {module} import {', '.join(names)}"
    return one if len(one) <= WIDTH else _exploded(f"from {module} import (", names, ")")


def _member_order(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name
