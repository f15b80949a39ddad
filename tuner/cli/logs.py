"""`tuner logs`: what a job printed."""

from __future__ import annotations

import click

from tuner.cli.options import registry_option


@click.command("logs")
@click.argument("job_id", metavar="JOB", type=click.IntRange(1))
@click.option(
    "--tail",
    "lines",
    metavar="N",
    type=click.IntRange(1),
    help="The last N lines alone.  [default: all]",
)
@registry_option()
def command(job_id: int, lines: int | None, registry_url: str | None) -> None:
    """Print what all runs of JOB on this machine have printed so far."""
    from registry.errors import RecordNotFound
    from tuner.cli.opening import opened, settings_for
    from tuner.daemon.service import job_log

    job = opened(registry_url).jobs.get(job_id)
    path = job_log(settings_for(registry_url), job_id)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise RecordNotFound(
            f"job {job_id} ({job.status}) has no log on this machine: {path} is not there",
            hint="A job's log lies where its daemon ran, from its first start on.",
        ) from None
    kept = text.splitlines()
    for line in kept if lines is None else kept[-lines:]:
        click.echo(line)
