"""`tuner registry`: the store itself."""

from __future__ import annotations

import click

from registry.errors import RegistryCorrupt
from tuner.cli.opening import opened, settings_for
from tuner.cli.options import json_option, registry_option
from tuner.cli.output import print_json


@click.group("registry")
def command() -> None:
    """Upgrade, check or locate the registry."""


@command.command("upgrade")
@registry_option()
def upgrade(registry_url: str | None) -> None:
    """Bring the registry to this release's schema; make it where there is none."""
    from registry.client import upgrade_registry

    before, now = upgrade_registry(settings_for(registry_url).registry)
    if before is None:
        click.echo(f"made a new registry with schema {now}")
    elif before == now:
        click.echo(f"nothing to do: schema {now} is the newest")
    else:
        click.echo(f"upgraded from schema {before} to {now}")


@command.command("check")
@json_option()
@registry_option()
def check(as_json: bool, registry_url: str | None) -> int:
    """Look for damage in the file, its rows and its artifacts. Exit code 4 if there is any."""
    problems = opened(registry_url).check()
    if as_json:
        print_json({"healthy": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) or "no damage found")
    return RegistryCorrupt.exit_code if problems else 0


@command.command("path")
@registry_option()
def path(registry_url: str | None) -> None:
    """Print where the registry is."""
    from registry.location import locate

    click.echo(locate(settings_for(registry_url).registry).name)
