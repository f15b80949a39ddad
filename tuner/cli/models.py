"""`tuner models`: the models known by name."""

from __future__ import annotations

import click

from tuner.cli.options import json_option
from tuner.cli.output import print_json, print_rich


@click.command("models")
@json_option()
def command(as_json: bool) -> None:
    """List the models known by name.

    Any local diffusers folder and any hub id (owner/name) can be tuned too.
    """
    from tuner import catalog

    models = [catalog.entry(name) for name in catalog.names()]
    if as_json:
        print_json([model.model_dump(mode="json", exclude={"components"}) for model in models])
        return
    from tuner.report.tables import models_table

    print_rich(models_table(models))
