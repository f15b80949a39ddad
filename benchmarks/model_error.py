"""How far predictions were off over recorded trials: `tuner model-error`, from files.

    python benchmarks/model_error.py trials.jsonl [more.jsonl] [--hold-out resolution=1024x1024]

Each prediction is the one that was frozen before its trial; `--roofline` takes the bare ones. Peaks
and requests are those of trials at the pipeline rung, requests those at the model's own number of
steps.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from benchmarks.recorded import RecordedTrial, read_all
from registry.errors import TunerError
from registry.inventory import ModelInventory
from tuner import catalog
from tuner.cli.main import report
from tuner.cli.output import print_rich
from tuner.hold_out import held_out, parse_group
from tuner.model_error import AXES, METRICS, Case, grouped, spreads, worst
from tuner.report import model_error as tables
from tuner.search.features import placement_label


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--hold-out", "groups", metavar="AXIS=VALUE", multiple=True)
@click.option("--worst", "count", type=click.IntRange(min=0), default=5, show_default=True)
@click.option("--roofline", is_flag=True, help="Judge what was predicted before any trial.")
def command(paths: tuple[Path, ...], groups: tuple[str, ...], count: int, roofline: bool) -> None:
    """Print the errors of predictions over the recorded trials of PATHS."""
    named = [parse_group(text) for text in groups]
    items = read_all(paths)
    cases = cases_of(items, roofline=roofline)
    if not cases:
        click.echo("No trial of these files measured anything.")
        return
    print_rich(tables.overall_table(spreads(cases)))
    print_rich(tables.groups_table({axis: grouped(cases, axis) for axis in AXES}))
    for metric in METRICS if count else ():
        print_rich(tables.worst_table(metric, worst(cases, metric, count)))
    inventories = inventories_of(items)
    for axis, value in named:
        print_rich(tables.held_out_table(held_out(cases, inventories, axis, value)))
    click.echo(tables.left_out_text(left_out(items)))


def cases_of(items: Sequence[RecordedTrial], *, roofline: bool = False) -> tuple[Case, ...]:
    """One for each trial that measured something and that nothing foreign disturbed."""
    return tuple(
        Case(
            trial=f"{item.run}/{number}",
            family=item.family,
            model=item.model.name,
            model_key=item.model_key,
            environment=item.environment,
            workload=item.workload,
            plan=item.trial.plan,
            placement=placement_label(item.trial.plan.pipeline.component(item.denoiser).placement),
            estimate=item.roofline if roofline else (item.trial.estimate or item.roofline),
            measurement=item.trial.measurement,
            default_steps=item.steps is None,
        )
        for number, item in enumerate(items, start=1)
        if item.trial.measurement is not None and item.trial.measurement.contaminated is None
    )


def left_out(items: Iterable[RecordedTrial]) -> Counter[str]:
    """Why other trials are no cases."""
    reasons: Counter[str] = Counter()
    for item in items:
        if item.trial.failure is not None:
            reasons[f"failed ({item.trial.failure.kind.replace('_', ' ')})"] += 1
        elif item.trial.measurement is not None and item.trial.measurement.contaminated:
            reasons["contaminated"] += 1
    return reasons


def inventories_of(items: Iterable[RecordedTrial]) -> dict[str, ModelInventory]:
    """Those that this release ships, by the key of the trials' model."""
    names = {item.model_key: item.model.name for item in items if item.model.source == "catalog"}
    shipped = {key: catalog.shipped_inventory(name) for key, name in names.items()}
    return {key: found for key, found in shipped.items() if found is not None}


def main(arguments: Sequence[str]) -> int:
    try:
        command.main(list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TunerError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
