"""The queue of tuning jobs as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from registry.jobs import Job
from tuner.units import format_bytes


def queue(
    jobs: Sequence[Job], counts: Mapping[str, int], paused_since: datetime | None
) -> Iterator[RenderableType]:
    """Jobs as given, a line a job, and how many there are of each kind."""
    if paused_since is not None:
        yield Text(f"The queue is paused since {local(paused_since)}; `tuner resume` ends that.")
    if jobs:
        yield _table(jobs)
    counted = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    yield Text(f"Jobs: {counted or 'none'}")


def facts(job: Job) -> RenderableType:
    """Everything about one job."""
    key = job.body.key
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("job", job.id),
        ("status", job.status),
        ("why", job.body.reason),
        ("model", f"{key.ref.name} ({key.ref.weights})"),
        ("workload", key.workload.label),
        ("budget", format_bytes(key.budget_bytes)),
        ("policy, objective", f"{key.policy}, {key.objective}"),
        ("device", key.selector or "any"),
        ("interpreter", key.python or "the daemon's own"),
        ("priority", job.priority),
        ("attempts, failures", f"{job.attempts}, {job.failures}"),
        ("enqueued", local(job.enqueued_at)),
        ("not before", local(job.available_at)),
        ("at work", job.acquired_by),
        ("ended", None if job.ended_at is None else local(job.ended_at)),
        ("study", job.study_id),
        ("said", job.message),
    ):
        if value is not None:
            table.add_row(name, Text(str(value)))
    return table


def local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _table(jobs: Sequence[Job]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("Job", "Status", "Why", "Model", "Workload", "Budget", "Priority", "Said"):
        table.add_column(name, justify="right" if name in ("Job", "Priority") else "left")
    for job in jobs:
        key = job.body.key
        words = (job.id, job.status, job.body.reason, key.ref.name, key.workload.label)
        more = (format_bytes(key.budget_bytes), job.priority, job.message or "")
        table.add_row(*(Text(str(value)) for value in (*words, *more)))
    return table
