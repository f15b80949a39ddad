"""`tuner revoke`: take a bad plan out of service."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from tuner.cli.opening import opened
from tuner.cli.options import registry_option


@click.command("revoke")
@click.argument("record", metavar="RECORD")
@click.option("--reason", required=True, help="Why; kept with the record and shown to people.")
@registry_option()
def command(record: str, reason: str, registry_url: str | None) -> None:
    """Take RECORD out of service: no `get-plan` answers with it any more. It stays in history."""
    if not reason.strip():
        raise click.UsageError("--reason is empty: say why, for those who find the record later")
    registry = opened(registry_url)
    record_id = registry.revoke(record, reason=reason, now=datetime.now(UTC))
    kept = registry.revoked_reason(record_id)
    click.echo(f"revoked {record_id}: {kept}")
    if kept != reason:
        click.echo("It was revoked before; the first reason stays.", err=True)
