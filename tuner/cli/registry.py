"""`tuner registry`: the store itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from registry.errors import RegistryCorrupt
from tuner.cli.opening import opened, settings_for
from tuner.cli.options import json_option, registry_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from registry.signing import SigningKeys


@click.group("registry")
def command() -> None:
    """Upgrade, check or locate the registry, and say whose artifacts to trust."""


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
    from registry.client import database_path

    click.echo(database_path(settings_for(registry_url).registry))


@command.command("keys")
@json_option()
def keys(as_json: bool) -> None:
    """List the keys whose artifacts are used here, this user's own first.

    A compiled artifact runs code: it is used only under a valid signature by one of these keys.
    """
    found = _signing_keys().trusted()
    if as_json:
        print_json([{**key.model_dump(), "key_id": key.key_id} for key in found])
        return
    if not found:
        click.echo("no key yet: the first published plan makes this user's own")
        return
    from tuner.report.tables import table

    rows = ((key.name, key.key_id, key.public_key) for key in found)
    print_rich(table("Name", "Key", "Public key", rows=rows))


@command.command("trust")
@click.argument("name")
@click.argument("public_key")
def trust(name: str, public_key: str) -> None:
    """Use artifacts signed with PUBLIC_KEY, and call that key NAME.

    `tuner registry keys` shows a user's own public key, to be given to those who shall trust it.
    """
    key = _signing_keys().trust(name, public_key)
    click.echo(f"trusted: {key.name} ({key.key_id})")


@command.command("distrust")
@click.argument("key")
def distrust(key: str) -> None:
    """No longer use artifacts signed with KEY, which is named as `tuner registry keys` shows it."""
    _signing_keys().distrust(key)
    click.echo(f"no longer trusted: {key}")


def _signing_keys() -> SigningKeys:
    from registry.signing import SigningKeys

    return SigningKeys(settings_for(None).config_dir)
