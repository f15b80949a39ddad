"""Tables for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tuner.catalog import CatalogModel


def table(*columns: str, title: str | None = None, rows: Iterable[Sequence[str]] = ()) -> Table:
    """A plain table; a column named with a leading ">" is aligned to the right."""
    made = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column[:1] == ">" else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def facts(pairs: Mapping[str, str]) -> Table:
    """Names and values in two columns without a header."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(name, Text(value))
    return made


def models_table(models: Iterable[CatalogModel]) -> Table:
    rows = (
        (
            model.name,
            model.description,
            "{}x{}".format(*model.default_resolution),
            str(model.default_steps),
            model.hub_id or ("shipped" if model.ships_weights else "random weights only"),
        )
        for model in models
    )
    return table("Model", "What it is", ">Size", ">Steps", "Weights", rows=rows)
