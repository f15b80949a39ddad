"""`tuner pull`: records of another registry, taken into this one."""

from __future__ import annotations

import click

from tuner.cli.opening import opened_alone
from tuner.cli.options import json_option, registry_option
from tuner.cli.transfers import chosen_records, report, sent


@click.command("pull")
@chosen_records()
@click.option("--from", "source_url", required=True, metavar="URL", help="The other registry.")
@json_option()
@registry_option()
def command(
    record_ids: tuple[str, ...],
    model: str | None,
    source_url: str,
    as_json: bool,
    registry_url: str | None,
) -> int:
    """Take records in service, with artifacts and signatures, from another registry.

    A record that is known here, or older than another of its key, changes nothing. Artifacts
    are used only where a key that is trusted here signed them.
    """
    source, target = opened_alone(source_url), opened_alone(registry_url, create=True)
    done = sent(source, target, record_ids, model)
    return report(done, as_json)
