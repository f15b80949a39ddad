"""Whether a job that nobody asked for by hand still has something to do."""

from __future__ import annotations

from registry.environment import Environment
from registry.jobs import Job, JobKey
from registry.record import TuningRecord
from registry.records import StoredRecord
from registry.store import Registry
from registry.workload import Workload
from tuner.matching import environment_changes


def answered_meanwhile(
    registry: Registry, job: Job, environment: Environment
) -> StoredRecord | None:
    """The plan that answers a miss or a drift in this very environment by now: another job of the
    same question found it, `tuner run` did, or the driver is again what it was.

    None for what a user enqueued. Of a miss only what was published after it counts: a record that
    was there then did not answer, whatever it lacked.
    """
    if job.body.reason == "asked":
        return None
    workload = Workload(shapes=job.body.key.workload.shapes)
    found = registry.candidates(model_name=job.body.key.ref.name, workload=workload.digest)
    return next((item for item in found if _answers(item, job, environment)), None)


def _answers(item: StoredRecord, job: Job, environment: Environment) -> bool:
    is_new = job.body.reason == "drift" or item.published_at > job.enqueued_at
    same_place = not environment_changes(environment, item.record.environment)
    return is_new and same_place and _same_question(item.record, job.body.key)


def _same_question(record: TuningRecord, key: JobKey) -> bool:
    asked = (key.ref, key.budget_bytes, key.host_budget_bytes, key.policy, key.objective)
    return asked == (
        record.model,
        record.budget_bytes,
        record.host_budget_bytes,
        record.quality.policy,
        record.objective,
    )
