"""A proved plan with its evidence, as the record that is published."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from registry.environment import Environment
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import ArtifactRef, Measurement, Quality, RecordKey, Trial, TuningRecord
from tuner.request import StudyRequest
from tuner.search import Proven
from tuner.units import format_seconds, how_many


def make_record(
    request: StudyRequest,
    inventory: ModelInventory,
    environment: Environment,
    proven: Proven,
    baseline: Trial,
    *,
    artifacts: Sequence[ArtifactRef],
    study: str,
    now: datetime,
) -> TuningRecord:
    """The measurement is the replay's, the verdict the proof's, the speed-up against a baseline of
    the same run."""
    return TuningRecord(
        key=record_key(request, inventory, environment, proven.plan),
        model=request.model.ref,
        pipeline_class=inventory.pipeline_class,
        workload=request.workload,
        environment=environment,
        plan=proven.plan,
        budget_bytes=request.budget_bytes,
        host_budget_bytes=request.host_budget_bytes,
        objective=request.objective,
        estimate=proven.estimate,
        measurement=measured(proven.replay),
        baseline_plan=baseline.plan,
        baseline=measured(baseline),
        quality=proven.trial.quality or _reference_quality(request),
        artifacts=tuple(artifacts),
        study=study,
        created_at=now,
    )


def measured(trial: Trial) -> Measurement:
    """The measurement of a trial that has one. Raises ValueError for any other."""
    if trial.measurement is None:
        raise ValueError(f"the {trial.rung} trial of {trial.plan.digest} measured nothing")
    return trial.measurement


def _reference_quality(request: StudyRequest) -> Quality:
    """The baseline itself won: it is what pictures are held against."""
    return Quality(
        policy=request.policy,
        passed=True,
        calibrated=request.model.ref.weights == "pretrained",
        worst={},
        scores=(),
        reasons=("this plan is the reference",),
    )


def record_key(
    request: StudyRequest, inventory: ModelInventory, environment: Environment, plan: Plan
) -> RecordKey:
    return RecordKey(
        architecture=inventory.architecture,
        weights=inventory.weights,
        workload=request.workload.digest,
        hardware=environment.hardware.digest,
        runtime=environment.runtime.digest,
        plan=plan.digest,
    )


def why_nothing(trials: Sequence[Trial], limit_s: float | None) -> str:
    """How far a study came that proved nothing; `limit_s` where its time limit is near, else None:
    then there was nothing left to try."""
    timed = {trial.plan.digest for trial in trials if trial.measurement is not None}
    rejected = {trial.plan.digest for trial in trials if _was_rejected(trial)}
    unrepeated = [trial for trial in trials if trial.rung == "replay" and trial.failure is not None]
    parts = [f"{how_many(len(timed), 'plan')} ran"]
    if rejected:
        parts.append(f"{len(rejected)} lost the picture")
    if unrepeated:
        parts.append(f"{how_many(len(unrepeated), 'replay')} did not repeat what was measured")
    ended = (
        "nothing was left to try"
        if limit_s is None
        else f"the time limit of {format_seconds(limit_s)} left none for more"
    )
    return "; ".join((*parts, ended))


def _was_rejected(trial: Trial) -> bool:
    lost = trial.failure is not None and trial.failure.kind == "rejected_quality"
    return lost or (trial.quality is not None and not trial.quality.passed)
