"""`tuner push`: records of this registry, put into another."""

from __future__ import annotations

import click

from tuner.cli.opening import opened_alone
from tuner.cli.options import json_option, registry_option
from tuner.cli.transfers import chosen_records, report, sent


@click.command("push")
@chosen_records()
@click.option("--to", "target_url", required=True, metavar="URL", help="The other registry.")
@json_option()
@registry_option()
def command(
    record_ids: tuple[str, ...],
    model: str | None,
    target_url: str,
    as_json: bool,
    registry_url: str | None,
) -> int:
    """Put records in service, with artifacts and signatures, into another registry as well.

    A record that is known there, or older than another of its key, changes nothing.
    """
    source, target = opened_alone(registry_url), opened_alone(target_url)
    done = sent(source, target, record_ids, model)
    return report(done, as_json)
