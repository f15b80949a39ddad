"""`tuner resume`: let daemons work again."""

from __future__ import annotations

import click

from tuner.cli.options import registry_option


@click.command("resume")
@click.argument("job_id", metavar="[JOB]", type=click.IntRange(1), required=False)
@registry_option()
def command(job_id: int | None, registry_url: str | None) -> None:
    """Let JOB be worked at again, or the whole queue.

    With JOB also ends its wait after a failure. Jobs that were paused by themselves stay paused
    when the queue goes on.
    """
    from tuner.cli.opening import opened
    from tuner.clock import SystemClock

    opened(registry_url).jobs.resume(job_id, now=SystemClock().now())
    click.echo("the queue goes on" if job_id is None else f"job {job_id} may be worked at")
