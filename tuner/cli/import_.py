"""`tuner import`: what `tuner export` wrote."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from tuner.cli.opening import opened_alone, settings_for
from tuner.cli.options import json_option, registry_option
from tuner.cli.transfers import report


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option()
@registry_option()
def command(file: Path, as_json: bool, registry_url: str | None) -> int:
    """Take records with their artifacts from FILE, which `tuner export` wrote.

    It must be signed by a key that is trusted here, else nothing of it is read: exit code 8. A
    record that is known here, or older than another of its key, changes nothing.
    """
    from registry.bundle import import_bundle
    from registry.signing import SigningKeys

    keys = SigningKeys(settings_for(registry_url).config_dir)
    target = opened_alone(registry_url, create=True)
    return report(import_bundle(file, target, keys=keys, now=datetime.now(UTC)), as_json)
