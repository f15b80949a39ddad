"""`tuner pause`: keep daemons from working."""

from __future__ import annotations

import click

from tuner.cli.options import registry_option


@click.command("pause")
@click.argument("job_id", metavar="[JOB]", type=click.IntRange(1), required=False)
@registry_option()
def command(job_id: int | None, registry_url: str | None) -> None:
    """Keep JOB, or all jobs, from being worked at until `tuner resume`.

    A daemon that is at work stops within a heartbeat; what its trials measured is kept.
    """
    from tuner.cli.opening import opened
    from tuner.clock import SystemClock

    opened(registry_url).jobs.pause(job_id, now=SystemClock().now())
    click.echo("the queue is paused" if job_id is None else f"job {job_id} is paused")
