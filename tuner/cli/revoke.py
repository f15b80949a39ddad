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
    record_id = opened(registry_url).revoke(record, reason=reason, now=datetime.now(UTC))
    click.echo(f"revoked {record_id}: {reason}")
