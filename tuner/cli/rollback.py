"""`tuner rollback`: return to the record before."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from tuner.cli.opening import opened
from tuner.cli.options import registry_option


@click.command("rollback")
@click.argument("record", metavar="RECORD")
@registry_option()
def command(record: str, registry_url: str | None) -> None:
    """Take RECORD out of service and put the version before it back in its place."""
    current = opened(registry_url).rollback(record, now=datetime.now(UTC))
    click.echo(f"in service again: {current.record.id}")
