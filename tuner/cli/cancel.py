"""`tuner cancel`: end a job."""

from __future__ import annotations

import click

from tuner.cli.options import registry_option


@click.command("cancel")
@click.argument("job_id", metavar="JOB", type=click.IntRange(1))
@registry_option()
def command(job_id: int, registry_url: str | None) -> None:
    """End JOB for good. A daemon that is at it stops within a heartbeat; nothing is published."""
    from tuner.cli.opening import opened
    from tuner.clock import SystemClock

    opened(registry_url).jobs.cancel(job_id, now=SystemClock().now())
    click.echo(f"job {job_id} is cancelled")
