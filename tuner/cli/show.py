"""`tuner show`: one record or one study, in full."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.opening import opened
from tuner.cli.options import json_option, registry_option
from tuner.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from registry.records import StoredRecord
    from registry.store import Registry
    from registry.studies import StudyRow


@click.command("show")
@click.argument("name", metavar="RECORD|STUDY")
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a study's report to this file.",
)
@click.option("--verbose", is_flag=True, help="Every score that a policy refused, one by one.")
@json_option()
@registry_option()
def command(
    name: str, html_path: Path | None, verbose: bool, as_json: bool, registry_url: str | None
) -> None:
    """Show a record or a study, named by its id or the beginning of it."""
    registry = opened(registry_url)
    found = find(registry, name)
    if html_path is not None:
        write_html(registry, found, html_path)
    elif as_json:
        print_json(as_data(registry, found))
    else:
        print_found(registry, found, verbose=verbose)


def find(registry: Registry, name: str) -> StoredRecord | StudyRow:
    """The record of that id or prefix, else the study. Raises RecordNotFound, and what kept the
    record from being read where there is no study either."""
    from registry.errors import RecordNotFound, RegistryError

    try:
        return registry.record(name)
    except RegistryError as no_record:
        try:
            return registry.study(name)
        except RecordNotFound:
            raise no_record from None


def as_data(registry: Registry, found: StoredRecord | StudyRow) -> dict[str, Any]:
    """Everything that is kept, as JSON types."""
    from registry.records import StoredRecord

    data = found.model_dump(mode="json")
    if isinstance(found, StoredRecord):
        return {"kind": "record", "id": found.record.id, **data}
    return {"kind": "study", **data, "trials": registry.trials(found.id)}


def print_found(registry: Registry, found: StoredRecord | StudyRow, *, verbose: bool) -> None:
    from registry.records import StoredRecord

    if isinstance(found, StoredRecord):
        from tuner.report import records

        summary, figures = records.record_summary(found), records.comparison(found.record)
        print_rich(summary, figures, records.shapes_table(found.record.measurement))
    else:
        from tuner.report import audits, fronts, layers, studies

        trials = registry.trials(found.id)
        table = studies.trials_table(trials, verbose=verbose)
        print_rich(studies.study_summary(found, trials), table)
        concluded = found.summary or {}
        tables = (fronts.front_table(concluded), layers.layers_table(concluded))
        print_rich(*(made for made in tables if made is not None))
        audit = concluded.get("audit")
        print_rich(*(audits.audit_parts(audit) if audit else ()))


def write_html(registry: Registry, found: StoredRecord | StudyRow, path: Path) -> None:
    """The report of a study, or of the study that proved a record."""
    from registry.records import StoredRecord
    from tuner.report.html import study_page

    study = registry.study(found.record.study) if isinstance(found, StoredRecord) else found
    path.write_text(study_page(study, registry.trials(study.id)), encoding="utf-8")
    click.echo(f"wrote {path}")
