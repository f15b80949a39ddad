"""`tuner status`: the queue of jobs, and who works at what."""

from __future__ import annotations

from typing import Any

import click

from tuner.cli.options import json_option, registry_option
from tuner.cli.output import print_json, print_rich


@click.command("status")
@click.argument("job_id", metavar="[JOB]", type=click.IntRange(1), required=False)
@click.option("--all", "show_all", is_flag=True, help="Jobs that ended, too.")
@json_option()
@registry_option()
def command(job_id: int | None, show_all: bool, as_json: bool, registry_url: str | None) -> None:
    """Show the jobs that daemons work at and those that wait, or everything about one JOB."""
    from registry.jobs import OPEN
    from tuner.cli.opening import opened

    queue = opened(registry_url).jobs
    if job_id is not None:
        jobs: tuple[Any, ...] = (queue.get(job_id),)
    else:
        jobs = queue.list(statuses=None if show_all else OPEN)
    paused_since, counts = queue.paused_since(), queue.counts()
    if as_json:
        print_json({"paused_since": paused_since, "counts": counts, "jobs": jobs})
        return
    from tuner.report import jobs as report

    if job_id is not None:
        print_rich(report.facts(jobs[0]))
    else:
        print_rich(*report.queue(jobs, counts, paused_since))
