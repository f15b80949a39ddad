"""`tuner export`: records as one signed file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from tuner.cli.opening import opened_alone, settings_for
from tuner.cli.options import registry_option
from tuner.cli.transfers import chosen, chosen_records, tell_left_out
from tuner.units import how_many


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@chosen_records()
@registry_option()
def command(
    file: Path, record_ids: tuple[str, ...], model: str | None, registry_url: str | None
) -> int:
    """Write records in service, with their artifacts, to FILE, signed with this user's key.

    `tuner import` takes it in on a machine that trusts the key (`tuner keys show`, `tuner keys
    trust`).
    """
    from registry.bundle import write_bundle
    from registry.signing import SigningKeys

    source = opened_alone(registry_url)
    found, inventories = chosen(source, record_ids, model)
    keys = SigningKeys(settings_for(registry_url).config_dir)
    done = write_bundle(
        file, source, found, keys=keys, now=datetime.now(UTC), inventories=inventories
    )
    click.echo(f"{how_many(len(done.new), 'record')} written to {file}")
    return tell_left_out(done)
