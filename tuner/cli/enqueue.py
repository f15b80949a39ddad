"""`tuner enqueue`: ask a daemon for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import (
    json_option,
    objective_option,
    policy_option,
    python_option,
    question_options,
    registry_option,
    steps_option,
    time_limit_option,
)
from tuner.cli.output import print_json

if TYPE_CHECKING:
    from registry.jobs import JobBody

ASKED_PRIORITY = 100
"""Over what a daemon enqueues by itself."""


@click.command("enqueue")
@question_options()
@policy_option()
@objective_option()
@steps_option()
@time_limit_option()
@python_option(
    "The app's interpreter: tuned for what is installed there.  [default: the daemon's own]"
)
@click.option(
    "--gpu",
    "selector",
    metavar="GPU",
    default="",
    callback=lambda _context, _parameter, value: selector_of(value),
    help="UUID or name of the GPU that shall do it, or `cpu`.  [default: any daemon's]",
)
@click.option(
    "--priority",
    type=click.IntRange(0, 1000),
    default=ASKED_PRIORITY,
    show_default=True,
    help="The highest goes first; jobs for drifted plans have up to 99.",
)
@json_option()
@registry_option()
def command(priority: int, as_json: bool, registry_url: str | None, **asked: Any) -> None:
    """Ask a daemon to find the fastest plan for a model within a memory budget.

    The same question asked twice is one job, until that has ended. `tuner status` shows what
    became of it.
    """
    from registry.client import open_registry
    from tuner.cli.opening import settings_for
    from tuner.clock import SystemClock

    body = body_of(asked)
    settings = settings_for(registry_url)
    registry = open_registry(settings.registry, opening=settings.opening)
    job, is_new = registry.jobs.enqueue(body, priority=priority, now=SystemClock().now())
    if as_json:
        print_json({"job": job.id, "new": is_new, "status": job.status})
    else:
        click.echo(f"job {job.id} is {'enqueued' if is_new else f'{job.status} already'}")


def selector_of(gpu: str) -> str:
    """Raises click.BadParameter for an index, which is another GPU for each daemon that reads it:
    no daemon would ever take the job."""
    if gpu.isdecimal():
        raise click.BadParameter(f"{gpu} is an index; give the UUID (`nvidia-smi -L`) or the name")
    return gpu


def body_of(asked: Mapping[str, Any]) -> JobBody:
    """Of the command's options. Raises UnknownModel and InvalidInput for what no daemon could ever
    do."""
    from registry.jobs import JobBody, JobKey
    from tuner.cli.workloads import workload_for
    from tuner.models import resolve_model

    spec = resolve_model(asked["model"], weights=asked["weights"], revision=asked["revision"])
    python: Path | None = asked["python"]
    key = JobKey(
        model=spec.path or asked["model"],
        ref=spec.ref,
        workload=workload_for(spec, asked["resolutions"], asked["batch_sizes"]),
        budget_bytes=asked["budget_bytes"],
        host_budget_bytes=asked["host_budget_bytes"],
        policy=asked["policy"],
        objective=asked["objective"],
        python=str(python.absolute()) if python else None,
        selector=asked["selector"],
    )
    return JobBody(key=key, steps=asked["steps"], time_limit_s=asked["time_limit_s"])
