"""`serve` and `tokens` as commands, for `python -m registry` and for `tuner` alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from registry.errors import InvalidInput
from registry.server.listening import DEFAULT_PORT, Address, Tls
from registry.server.tokens import Role, Tokens

if TYPE_CHECKING:
    from registry.server.running import Service

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def serving_options() -> Callable[[Decorated], Decorated]:
    """How `serve` listens and what it takes; `run_service` understands them."""
    parts = (
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
        ),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=DEFAULT_PORT,
            show_default=True,
            help="Port to listen on; 0 takes a free one.",
        ),
        click.option(
            "--unix-socket",
            type=click.Path(path_type=Path),
            help="Listen on this socket instead, which only this user can open.",
        ),
        click.option(
            "--allow-host",
            "names",
            metavar="NAME",
            multiple=True,
            help="Host name that clients may use beside the address; repeat it for each.",
        ),
        click.option("--tls-certificate", type=FILE, help="Certificate chain, as PEM."),
        click.option("--tls-key", type=FILE, help="Its private key, as PEM."),
        click.option(
            "--require-token", is_flag=True, help="Ask readers on this machine for a token too."
        ),
        click.option(
            "--accept-unsigned",
            is_flag=True,
            help="Take records without a signature; nobody uses their artifacts.",
        ),
    )

    def decorate(command: Decorated) -> Decorated:
        for part in reversed(parts):
            command = part(command)
        return command

    return decorate


@contextmanager
def needing_extra() -> Iterator[None]:
    """Raises InvalidInput naming the extra where its packages are not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("fastapi", "uvicorn", "starlette", "h11"):
            raise
        raise InvalidInput(
            f"serving needs the package {package}, which is not installed",
            hint="pip install 'diffusion-tuner[serve]'",
        ) from error


def run_service(service: Service, given: dict[str, Any]) -> None:
    """Serve as the options say, until it is told to stop. Raises InvalidInput, UsageError."""
    from registry.server.running import serve

    asked = replace(
        service,
        address=Address(
            host=given["host"],
            port=given["port"],
            unix_socket=given["unix_socket"],
            names=tuple(given["names"]),
            requires_token=given["require_token"],
        ),
        tls=_tls(given["tls_certificate"], given["tls_key"]),
        options=replace(service.options, accepts_unsigned=given["accept_unsigned"]),
    )
    serve(asked, lambda where: click.echo(f"serving {service.registry.name} at {where}"))


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-certificate and --tls-key belong together")
    return Tls(certificate, key)


def tokens_group(find: Callable[[], Tokens]) -> click.Group:
    """The commands that change the list of tokens; `find` says which list."""

    @click.group("tokens")
    def tokens() -> None:
        """Say who may use the registry that is served here.

        A token is shown once, when it is made; kept is a digest of it. A change counts at once.
        """

    @tokens.command("create")
    @click.argument("name")
    @click.option(
        "--role",
        type=click.Choice(get_args(Role)),
        default="read",
        show_default=True,
        help="`publish` may also put records into service, `admin` also take them out.",
    )
    def create(name: str, role: Role) -> None:
        """Make a token for NAME and print it."""
        secret = find().create(name, role, datetime.now(UTC))
        click.echo(f"token {name!r} ({role}), shown this once:", err=True)
        click.echo(secret)

    @tokens.command("list")
    def list_() -> None:
        """List the tokens: name, role, when they were made."""
        for token in find().all():
            click.echo(f"{token.name}\t{token.role}\t{token.created_at:%Y-%m-%d %H:%M} UTC")

    @tokens.command("revoke")
    @click.argument("name")
    def revoke(name: str) -> None:
        """Let nobody in with the token of NAME any more."""
        click.echo(f"revoked: {find().revoke(name).name}")

    return tokens
