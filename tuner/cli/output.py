"""How commands print: JSON for programs, text for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter

LOG_WIDTH = 160
"""Columns where no terminal says how wide it is."""

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain(value: Any) -> Any:
    """`value` as JSON types: pydantic models, dataclasses, datetimes and containers of them."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def print_json(value: Any) -> None:
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_rich(*parts: RenderableType) -> None:
    """Print tables and text for people; rich is imported only by commands that need it.

    Written by click, not by rich, which would end the process itself at a closed pipe.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    click.echo(capture.get(), nl=False)
