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
