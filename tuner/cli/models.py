"""`tuner models`: the models known by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import json_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from tuner.catalog import CatalogModel


@click.command("models")
@json_option()
def command(as_json: bool) -> None:
    """List the models known by name.

    Any local diffusers folder and any hub id (owner/name) can be tuned too.
    """
    from tuner import catalog

    models = [catalog.entry(name) for name in catalog.names()]
    if as_json:
        print_json([_described(model) for model in models])
        return
    from tuner.report.tables import models_table

    print_rich(models_table(models))


def _described(model: CatalogModel) -> dict[str, Any]:
    """`weights_folder` is where this installation holds the shipped weights, else None."""
    from tuner import catalog

    folder = catalog.weights_folder(model.name)
    told = model.model_dump(mode="json", exclude={"components"})
    return told | {"weights_folder": None if folder is None else str(folder)}
