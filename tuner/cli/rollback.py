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
    """Put the version before RECORD back into service in its place."""
    registry = opened(registry_url)
    record_id = registry.record(record).record.id
    current = registry.rollback(record_id, now=datetime.now(UTC))
    click.echo(f"current again: {current.record.id} (in place of {record_id})")
