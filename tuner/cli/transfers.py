"""What `export`, `import`, `push` and `pull` share: which records, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tuner.cli.opening import recorded_name
from tuner.cli.options import model_option
from tuner.cli.output import print_json

if TYPE_CHECKING:
    from registry.inventory import ModelInventory
    from registry.store import Registry
    from registry.transfer import Parcel, Transferred

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def chosen_records() -> Callable[[Decorated], Decorated]:
    """`record_ids` and `model`: with neither, all records in service."""
    parts = (
        click.argument("record_ids", metavar="[RECORD]...", nargs=-1),
        model_option(required=False),
    )

    def decorate(command: Decorated) -> Decorated:
        for part in reversed(parts):
            command = part(command)
        return command

    return decorate


def chosen(
    source: Registry, record_ids: tuple[str, ...], model: str | None
) -> tuple[list[Parcel], dict[str, ModelInventory]]:
    """The records, and what is known of their models. Raises UsageError, RecordNotFound."""
    from registry.transfer import parcels
    from tuner.inventories import inventories_of

    if record_ids and model is not None:
        raise click.UsageError("give records or --model, not both")
    name = None if model is None else recorded_name(model)
    found = parcels(source, model_name=name, record_ids=record_ids)
    return found, inventories_of(source, (item.stored.record.model for item in found))


def sent(
    source: Registry, target: Registry, record_ids: tuple[str, ...], model: str | None
) -> Transferred:
    """From one registry to another."""
    from registry.transfer import copy, put_inventories

    found, inventories = chosen(source, record_ids, model)
    now = datetime.now(UTC)
    put_inventories(target, inventories, now)
    return copy(source, target, found, now=now)


def report(done: Transferred, as_json: bool) -> int:
    """Exit code 1 where something was left out."""
    if as_json:
        print_json(done)
        return 1 if done.left_out else 0
    click.echo(f"{len(done.new)} new, {done.known} already there")
    return tell_left_out(done)


def tell_left_out(done: Transferred) -> int:
    """Exit code 1 where something was left out."""
    for reason in done.left_out:
        click.echo(f"left out: {reason}", err=True)
    return 1 if done.left_out else 0
