"""`python -m registry`: serve a registry where no tuner is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from registry.errors import TunerError
from registry.server.commands import needing_extra, run_service, serving_options, tokens_group
from registry.server.tokens import Tokens


@click.group()
@click.option(
    "--home",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the service's own: tokens and trusted keys in `config`, its audit in `data`.",
)
@click.pass_context
def registry(context: click.Context, home: Path) -> None:
    """Serve a registry over HTTP, without a tuner."""
    context.obj = home.absolute()


@registry.command("serve")
@click.option("--registry", "url", required=True, metavar="URL", help="A folder, a file or a URL.")
@serving_options()
@click.pass_obj
def serve(home: Path, /, url: str, **options: Any) -> None:
    """Serve a registry until SIGTERM or Ctrl-C."""
    from registry.client import open_registry

    with needing_extra():
        from registry.server.memory import Fetches
        from registry.server.running import Service

    opened = open_registry(url)
    service = Service(
        registry=opened,
        fetches=Fetches(opened),
        config_dir=home / "config",
        data_dir=home / "data",
        version=version("diffusion-tuner"),
    )
    run_service(service, options)


@registry.command("trust")
@click.argument("name")
@click.argument("public_key")
@click.pass_obj
def trust(home: Path, name: str, public_key: str) -> None:
    """Take records signed with PUBLIC_KEY, and call that key NAME."""
    from registry.signing import SigningKeys

    key = SigningKeys(home / "config").trust(name, public_key)
    click.echo(f"trusted: {key.name} ({key.key_id})")


registry.add_command(
    tokens_group(lambda: Tokens(click.get_current_context().find_root().obj / "config"))
)


def main(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    try:
        registry.main(list(arguments), prog_name="python -m registry", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TunerError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
