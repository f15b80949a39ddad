"""`tuner history`: what was published and tried, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tuner.cli.opening import opened, recorded_name
from tuner.cli.options import ModelName, json_option, registry_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from registry.records import StoredRecord
    from registry.studies import StudyRow


@click.command("history")
@click.option("--model", type=ModelName(), help="Only this model.")
@click.option("--studies", is_flag=True, help="List studies instead of published records.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many to list.",
)
@json_option()
@registry_option()
def command(
    model: str | None, studies: bool, limit: int, as_json: bool, registry_url: str | None
) -> None:
    """List published records, or studies, newest first."""
    registry = opened(registry_url)
    name = None if model is None else recorded_name(model)
    if studies:
        _print_studies(registry.studies(model_name=name, limit=limit), as_json)
    else:
        _print_records(registry.history(model_name=name, limit=limit), as_json)


def _print_records(found: Sequence[StoredRecord], as_json: bool) -> None:
    if as_json:
        print_json([{"id": item.record.id, **item.model_dump(mode="json")} for item in found])
        return
    from tuner.report.records import history_table

    print_rich(history_table(found))


def _print_studies(found: Sequence[StudyRow], as_json: bool) -> None:
    if as_json:
        print_json([study.model_dump(mode="json") for study in found])
        return
    from tuner.report.studies import studies_table

    print_rich(studies_table(found))
