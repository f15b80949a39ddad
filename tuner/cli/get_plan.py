"""`tuner get-plan`: the best plan known for this machine, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from registry.errors import NoPlan
from tuner.cli.options import (
    batch_sizes_option,
    gpu_option,
    host_memory_option,
    model_option,
    objective_option,
    policy_option,
    registry_option,
    resolutions_option,
    revision_option,
    vram_option,
    weights_option,
)
from tuner.cli.output import print_json

if TYPE_CHECKING:
    from registry.workload import Workload
    from tuner.answers import PlanAnswer, PlanOptions
    from tuner.shapes import Size


@click.command("get-plan")
@model_option()
@vram_option()
@host_memory_option()
@resolutions_option()
@batch_sizes_option()
@weights_option()
@revision_option()
@policy_option()
@objective_option()
@click.option("--strict", is_flag=True, help="Accept an exact match only; else exit code 3.")
@click.option(
    "--enqueue-on-miss/--no-enqueue-on-miss",
    default=None,
    help="Make a tuning job of what nothing proved here answers.  [default: where a daemon serves "
    "the device]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "yaml", "python"]),
    default="json",
    show_default=True,
    help="`python` is a diffusers script that does by hand what the plan says.",
)
@gpu_option()
@registry_option()
def command(
    model: str,
    budget_bytes: int,
    resolutions: tuple[Size, ...],
    batch_sizes: tuple[int, ...],
    form: str,
    **options: Any,
) -> None:
    """Print the best plan known for a model on this machine within a memory budget.

    Several --resolution and --batch-size are one workload, as for `tuner run`. The answer says how
    it matched: exact, architecture, resolution, stale or estimated. Nothing is measured here, and
    torch is not imported.
    """
    from tuner.answers import find_plan, note_miss

    workload, asked = question(model, resolutions, batch_sizes, options)
    try:
        answer = find_plan(model, budget_bytes, workload, asked)
    except NoPlan:
        _tell(note_miss(model, budget_bytes, workload, asked))
        raise
    if form == "json":
        print_json(answer.to_json())
    else:
        click.echo(_yaml(answer) if form == "yaml" else answer.script(), nl=False)
    answer.note_fetch()
    if answer.answer.retune_wanted:
        _tell(note_miss(model, budget_bytes, workload, asked))


def question(
    model: str,
    resolutions: tuple[Size, ...],
    batch_sizes: tuple[int, ...],
    options: dict[str, Any],
) -> tuple[Workload, PlanOptions]:
    """Of the command's options. Raises UsageError and what `resolve_model` raises."""
    from tuner.answers import PlanOptions
    from tuner.cli.workloads import workload_for
    from tuner.models import resolve_model

    spec = resolve_model(model, weights=options["weights"], revision=options["revision"])
    workload = workload_for(spec, resolutions, batch_sizes)
    return workload, PlanOptions(
        registry=options["registry_url"],
        gpu=options["gpu"],
        host_memory=options["host_budget_bytes"],
        weights=options["weights"],
        revision=options["revision"],
        policy=options["policy"],
        objective=options["objective"],
        strict=options["strict"],
        enqueue_on_miss=options["enqueue_on_miss"],
    )


def _tell(job_id: int | None) -> None:
    """Standard output is the answer's alone."""
    if job_id is not None:
        click.echo(f"enqueued: job {job_id} will prove a plan here", err=True)


def _yaml(answer: PlanAnswer) -> str:
    import yaml

    text: str = yaml.safe_dump(answer.to_json(), sort_keys=False, allow_unicode=True)
    return text
