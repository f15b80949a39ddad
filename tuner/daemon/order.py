"""What a daemon tells the process of a job.

Apart from that process's own code: the daemon needs nothing of what runs a study.
"""

from __future__ import annotations

from registry.base import Frozen


class WorkOrder(Frozen):
    """`registry` as `open_registry` takes it, `gpu` as in `--gpu`; `token` is the lease's."""

    registry: str
    gpu: str | None
    job: int
    token: int
    parent_pid: int
    nice: int
