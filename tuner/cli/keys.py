"""`tuner keys`: whose compiled code is run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tuner.cli.opening import settings_for
from tuner.cli.options import json_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from registry.signing import SigningKeys


@click.group("keys")
def command() -> None:
    """Say whose artifacts are used here.

    A compiled artifact runs code: it is used only under a valid signature by one of these keys.
    """


@command.command("list")
@json_option()
def list_keys(as_json: bool) -> None:
    """List the keys whose artifacts are used here, this user's own first."""
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


@command.command("show")
@click.argument("key", required=False)
@json_option()
def show(key: str | None, as_json: bool) -> None:
    """Show the public key of KEY, a name or id; without one this user's own, made if need be.

    Give it to those who shall use what you publish: they add it with `tuner keys trust`.
    """
    keys = _signing_keys()
    found = keys.public_key if key is None else keys.find(key)
    if as_json:
        print_json({**found.model_dump(), "key_id": found.key_id})
        return
    click.echo(f"{found.name} ({found.key_id})\n{found.public_key}")


@command.command("trust")
@click.argument("name")
@click.argument("public_key")
def trust(name: str, public_key: str) -> None:
    """Use artifacts signed with PUBLIC_KEY, and call that key NAME.

    `tuner keys show` prints a user's own public key.
    """
    key = _signing_keys().trust(name, public_key)
    click.echo(f"trusted: {key.name} ({key.key_id})")


@command.command("revoke")
@click.argument("key")
def revoke(key: str) -> None:
    """No longer use artifacts signed with KEY, a name or id that `tuner keys list` shows."""
    gone = _signing_keys().revoke(key)
    click.echo(f"no longer trusted: {gone.name} ({gone.key_id})")


def _signing_keys() -> SigningKeys:
    from registry.signing import SigningKeys

    return SigningKeys(settings_for(None).config_dir)
