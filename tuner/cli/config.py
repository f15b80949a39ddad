"""`tuner config`: the configuration file, shown and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.options import json_option
from tuner.cli.output import print_json

if TYPE_CHECKING:
    from tuner.daemon.config import Config


PATH = click.argument("path", required=False, type=click.Path(dir_okay=False, path_type=Path))


@click.group("config")
def command() -> None:
    """Show and check the configuration file of `tuner daemon`."""


@command.command("show")
@PATH
@json_option()
def show(path: Path | None, as_json: bool) -> None:
    """Print every key with the value in force, as a file that could be used.

    PATH is config.toml in this user's own folder unless another is given.
    """
    from tuner.daemon.config import as_toml

    path, config = _read(path)
    if as_json:
        print_json(config)
        return
    where = path if path.exists() else f"the defaults; {path} is not there"
    click.echo(f"# {where}\n\n{as_toml(config)}", nl=False)


@command.command("check")
@PATH
def check(path: Path | None) -> None:
    """Say what is wrong with a configuration file; exit code 2 if anything is."""
    path, _ = _read(path)
    click.echo(f"{path}: {'in order' if path.exists() else 'not there; the defaults hold'}")


def _read(path: Path | None) -> tuple[Path, Config]:
    from tuner.config import load_settings
    from tuner.daemon.config import CONFIG_FILE, load_config

    is_named = path is not None
    path = path or load_settings().config_dir / CONFIG_FILE
    return path, load_config(path, must_exist=is_named)
