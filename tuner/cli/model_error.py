"""`tuner model-error`: how far the predictions of past trials were off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tuner.cli.opening import opened, recorded_name
from tuner.cli.options import ModelName, json_option, registry_option
from tuner.cli.output import plain, print_json, print_rich

if TYPE_CHECKING:
    from tuner.hold_out import HeldOut
    from tuner.past_trials import PastTrials


@click.command("model-error")
@click.option("--model", type=ModelName(), help="Only this model.")
@click.option(
    "--hold-out",
    "groups",
    metavar="AXIS=VALUE",
    multiple=True,
    help="Learn again without these trials and predict them, such as family=flux or "
    "resolution=1024x1024; repeatable.",
)
@click.option(
    "--worst",
    "count",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="How many of the worst predictions to list.",
)
@click.option(
    "--contaminated",
    is_flag=True,
    help="Count trials that ran beside foreign load too: their peaks hold, their times may not.",
)
@json_option()
@registry_option()
def command(
    model: str | None,
    groups: tuple[str, ...],
    count: int,
    contaminated: bool,
    as_json: bool,
    registry_url: str | None,
) -> None:
    """Show the error of predicted peaks and times over the registry's own trials.

    Each prediction is the one that was frozen before its trial. Trials are named STUDY/NUMBER;
    `tuner show STUDY` lists them in that order.
    """
    from tuner.hold_out import held_out, parse_group
    from tuner.past_trials import past_trials

    named = [parse_group(text) for text in groups]
    name = None if model is None else recorded_name(model)
    found = past_trials(opened(registry_url), name, contaminated=contaminated)
    apart = [held_out(found.cases, found.inventories, axis, value) for axis, value in named]
    if as_json:
        print_json(as_data(found, apart, count))
    else:
        _print(found, apart, count)


def as_data(found: PastTrials, apart: list[HeldOut], count: int) -> dict[str, Any]:
    """JSON types; errors are predicted over measured, less 1."""
    from tuner.model_error import AXES, METRICS, grouped, spreads, worst

    return {
        "trials": len(found.cases),
        "left_out": dict(found.left_out),
        "overall": plain(spreads(found.cases)),
        "by": {axis: plain(grouped(found.cases, axis)) for axis in AXES},
        "worst": {
            metric: [
                {"trial": case.trial, "error": error, "plan_digest": case.plan.digest}
                for case, error in worst(found.cases, metric, count)
            ]
            for metric in METRICS
        },
        "held_out": plain(apart),
    }


def _print(found: PastTrials, apart: list[HeldOut], count: int) -> None:
    from tuner.model_error import AXES, METRICS, grouped, spreads, worst
    from tuner.report import model_error as report

    if not found.cases:
        click.echo("No trial of this registry was both predicted and measured.")
    else:
        print_rich(report.overall_table(spreads(found.cases)))
        print_rich(report.groups_table({axis: grouped(found.cases, axis) for axis in AXES}))
        for metric in METRICS if count else ():
            print_rich(report.worst_table(metric, worst(found.cases, metric, count)))
        for item in apart:
            print_rich(report.held_out_table(item))
    if found.left_out:
        click.echo(report.left_out_text(found.left_out))
