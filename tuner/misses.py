"""What was asked and could not be answered from a measurement here becomes a job.

Written after the answer, best effort: a registry that cannot be written, or is busy, still answers.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from registry.errors import RegistryError
from registry.jobs import JobBody, JobKey
from registry.record import Objective, Policy
from registry.store import FETCH_WAIT_S, Registry
from registry.workload import Workload
from tuner.config import Settings
from tuner.detect import Detection
from tuner.installed import torch_build
from tuner.locks import Holder, living_daemon
from tuner.matching import device_kind
from tuner.model_spec import ModelSpec

MISS_PRIORITY = 50
"""Under what users enqueue; over a drifted plan that is seldom fetched."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What was asked, as a job would be. `model` is as the user named it."""

    model: str
    spec: ModelSpec
    workload: Workload
    budget_bytes: int
    host_budget_bytes: int | None
    policy: Policy
    objective: Objective


def enqueue_miss(
    question: Question,
    registry: Registry | None,
    detection: Detection,
    settings: Settings,
    *,
    wanted: bool | None,
) -> int | None:
    """The job's number. `wanted` None: where a daemon serves this device. None where there is no
    job: not wanted, no registry, or one that cannot be written."""
    daemon = living_daemon(detection.device_key, settings.locks_dir)
    if registry is None or not (daemon is not None if wanted is None else wanted):
        return None
    body = JobBody(key=_key(question, detection, daemon), reason="miss")
    now = datetime.now(UTC)
    try:
        job, _ = registry.jobs.enqueue(body, priority=MISS_PRIORITY, now=now, wait_s=FETCH_WAIT_S)
    except RegistryError as error:
        logger.info("miss not enqueued: %s", error.message)
        return None
    return job.id


def _key(question: Question, detection: Detection, daemon: Holder | None) -> JobKey:
    return JobKey(
        model=question.spec.path or question.model,
        ref=question.spec.ref,
        workload=question.workload,
        budget_bytes=question.budget_bytes,
        host_budget_bytes=question.host_budget_bytes,
        policy=question.policy,
        objective=question.objective,
        python=_interpreter(daemon),
        selector=device_kind(detection.environment.hardware),
    )


def _interpreter(daemon: Holder | None) -> str | None:
    """The app that asks is tuned for in its own interpreter, unless that is the daemon's, or has
    no torch to run anything with."""
    is_daemons = daemon is not None and daemon.command.startswith(f"{sys.executable} ")
    return None if is_daemons or torch_build() is None else sys.executable
