"""`tuner logs`: what a job printed."""

from __future__ import annotations

import time

import click

from tuner.cli.options import registry_option

LOOK_S = 0.5
"""Between two looks at a log that grows."""


@click.command("logs")
@click.argument("job_id", metavar="JOB", type=click.IntRange(1))
@click.option(
    "--tail",
    "lines",
    metavar="N",
    type=click.IntRange(1),
    help="The last N lines alone.  [default: all]",
)
@click.option("--follow", is_flag=True, help="Go on printing until the job has ended.")
@registry_option()
def command(job_id: int, lines: int | None, follow: bool, registry_url: str | None) -> None:
    """Print what all runs of JOB on this machine have printed so far."""
    from registry.errors import RecordNotFound
    from registry.jobs import OPEN
    from tuner.cli.opening import opened, settings_for
    from tuner.daemon.job_logs import job_log

    queue = opened(registry_url).jobs
    job = queue.get(job_id)
    path = job_log(settings_for(registry_url), job_id)
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise RecordNotFound(
            f"job {job_id} ({job.status}) has no log on this machine: {path} is not there",
            hint="A job's log lies where its daemon ran, from its first start on.",
        ) from None
    with file:
        kept = file.readlines()
        click.echo("".join(kept if lines is None else kept[-lines:]), nl=False)
        is_open = follow
        while is_open:
            # Asked before reading: what was written up to the job's end is read after it.
            is_open = queue.get(job_id).status in OPEN
            click.echo(file.read(), nl=False)
            if is_open:
                time.sleep(LOOK_S)
