"""What was tried on this machine before and speaks against giving a plan out unmeasured.

A prediction is no better than a measurement that says otherwise: a plan that ran out of memory
here, failed, lost the picture, needs more than is asked for, or was revoked, is not offered again.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry.digest import short
from registry.environment import Environment
from registry.plan import Plan
from registry.record import Trial
from registry.store import Registry
from registry.studies import StudyRow
from tuner.gate import satisfies
from tuner.matching import Request, same_device
from tuner.units import format_bytes

MOST_NOTES = 3
"""Of plans that were left out, the best predicted ones."""
WHOLE = ("pipeline", "replay")
"""Rungs whose peak is a request's."""
CONCLUSIVE = ("crashed", "unsupported", "error")
"""Failures that lie in the plan, whatever it was asked for."""


class Experience:
    """Of one machine with one request. `notes` says what was left out and why."""

    def __init__(self, registry: Registry, request: Request, environment: Environment) -> None:
        self._registry, self._request = registry, request
        self._environment = environment
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        more = len(self._notes) - MOST_NOTES
        others = (f"and {more} more plans that were tried here",) if more > 0 else ()
        return (*self._notes[:MOST_NOTES], *others)

    def against(self, plan: Plan) -> str | None:
        """The newest word on the plan, if it is a bad one."""
        reason = next(self._reasons(plan), None)
        if reason is not None:
            self._notes.append(f"plan {short(plan.digest)} left out: {reason}")
        return reason

    def _reasons(self, plan: Plan) -> Iterator[str]:
        yield from self._revocations(plan)
        tried = [item for item in self._registry.trials_of_plan(plan.digest) if self._is_here(item)]
        newest = [trial for study, trial in tried if study.id == tried[0][0].id]
        for trial in newest:
            yield from self._of_trial(trial, tried[0][0])

    def _revocations(self, plan: Plan) -> Iterator[str]:
        if self._request.architecture is None:
            return
        known = self._registry.history(
            architecture=self._request.architecture, plan_digest=plan.digest
        )
        own = self._environment.hardware
        for item in known:
            here = same_device(own, item.record.environment.hardware)
            if item.status == "revoked" and here:
                name = short(item.record.id)
                yield f"record {name} of it was revoked: {item.revoked_reason}"

    def _is_here(self, tried: tuple[StudyRow, Trial]) -> bool:
        study, _ = tried
        asked, model = self._request.model, study.model
        same_model = (model.name, model.source) == (asked.name, asked.source)
        return same_model and study.environment == self._environment

    def _of_trial(self, trial: Trial, study: StudyRow) -> Iterator[str]:
        if study.request.get("command") == "profile":
            return
        same_shapes = study.workload.digest == self._request.workload.digest
        if trial.failure is not None:
            yield from self._of_failure(trial, study, same_shapes=same_shapes)
        elif same_shapes:
            yield from self._of_peak(trial)
        yield from self._of_picture(trial, study)

    def _of_failure(self, trial: Trial, study: StudyRow, *, same_shapes: bool) -> Iterator[str]:
        failure, given = trial.failure, study.request.get("budget_bytes")
        if failure is None:
            return
        if failure.kind in CONCLUSIVE:
            yield f"it failed here: {failure.message}"
        if failure.kind != "out_of_memory" or not same_shapes:
            return
        if isinstance(given, int) and given >= self._request.budget_bytes:
            yield f"it ran out of memory here within {format_bytes(given)}"

    def _of_peak(self, trial: Trial) -> Iterator[str]:
        measured, budget = trial.measurement, self._request.budget_bytes
        if measured is None or measured.contaminated is not None or trial.rung not in WHOLE:
            return
        peak = measured.memory.peak_vram_bytes
        if peak > budget:
            needed, given = format_bytes(peak), format_bytes(budget)
            yield f"measured here it needs {needed}, over the {given} given"

    def _of_picture(self, trial: Trial, study: StudyRow) -> Iterator[str]:
        """Random weights say nothing of trained ones, nor these of random ones."""
        if study.model.weights != self._request.model.weights:
            return
        policy = self._request.policy
        lost = trial.failure is not None and trial.failure.kind == "rejected_quality"
        if lost or (trial.quality is not None and not satisfies(trial.quality, policy)):
            yield f"its picture did not meet the policy {policy} here"
