"""`tuner pin`: hold on to a plan, whatever is measured later."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from tuner.cli.opening import opened
from tuner.cli.options import registry_option


@click.command("pin")
@click.argument("record", metavar="RECORD")
@click.option("--remove", is_flag=True, help="Let others go before it again.")
@registry_option()
def command(record: str, remove: bool, registry_url: str | None) -> None:
    """Answer RECORD's own question with RECORD, though a newer or nearer match is known.

    Its question is its model, budget and sizes. `get-plan` says that it is pinned; --strict still
    takes exact matches alone. No daemon tunes the question again until `tuner pin --remove RECORD`.
    """
    registry = opened(registry_url)
    if remove:
        click.echo(f"no longer pinned: {registry.unpin(record)}")
    else:
        click.echo(f"pinned: {registry.pin(record, now=datetime.now(UTC))}")
