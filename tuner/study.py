"""One tuning run, start to publish.

Inventory, space, baseline, search and its trials, replay, records. Every finished trial is in the
registry before the next begins, so a run that was killed continues where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from registry.environment import Environment
from registry.errors import Interrupted, NothingFits, TrialFailed
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import ArtifactRef, Failure, Measurement, Rung, Trial, TuningRecord
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd, StudyRow
from tuner.candidate import Candidate
from tuner.clock import Clock
from tuner.config import Settings
from tuner.corrections import Corrections, learn
from tuner.cost_model import CostModel
from tuner.desk import Finished, TrialDesk
from tuner.detect import Detection
from tuner.events import (
    BestChanged,
    Listener,
    Note,
    StageStarted,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from tuner.gate import replay_problems
from tuner.inventories import counted_inventory
from tuner.labels import describe
from tuner.publishing import make_record, measured
from tuner.request import StudyOutcome, StudyRequest
from tuner.runner import Runner
from tuner.search import Proposal, Proven, Search
from tuner.space import Survey, baseline_plans, survey
from tuner.units import format_bytes

__all__ = ["StudyOutcome", "StudyRequest", "run_study"]

STUDY_FOLDER = "studies"
BASELINE_TOLERANCE = 1.02
"""A baseline predicted this little over the budget is tried; each that fails costs a whole load."""
COLD_SHARE = 0.5
"""Of the time left: a cold start is timed only if the warm replay leaves at least this much."""


def run_study(
    request: StudyRequest,
    *,
    registry: Registry,
    runner: Runner,
    detection: Detection,
    settings: Settings,
    keys: SigningKeys,
    clock: Clock,
    listener: Listener,
) -> StudyOutcome:
    """Find, prove and publish the plans that answer `request` on this machine.

    Raises NothingFits (naming the smallest budget that would do), TrialFailed where the model
    itself or no baseline can run, and Interrupted or KeyboardInterrupt when stopped: then the
    study is marked interrupted and nothing of it is published.
    """
    study = _Study(request, registry, runner, detection, settings, keys, clock, listener)
    return study.run()


class _Study:
    def __init__(
        self,
        request: StudyRequest,
        registry: Registry,
        runner: Runner,
        detection: Detection,
        settings: Settings,
        keys: SigningKeys,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self._request, self._registry, self._runner = request, registry, runner
        self._environment: Environment = detection.environment
        self._settings, self._keys = settings, keys
        self._clock, self._listener = clock, listener
        self._started_s = clock.monotonic_s()
        self._numbers = 0
        self._artifacts: dict[str, ArtifactRef] = {}
        self._notes: list[str] = []
        self._measured: dict[tuple[Rung, str], Measurement] = {}
        self._best: str | None = None

    def run(self) -> StudyOutcome:
        inventory = self._inventory()
        first = self._survey(inventory, self._cost_model(inventory))
        self._listener(StageStarted("space", _space_detail(first)))
        if not first.kept:
            raise NothingFits(
                _nothing_fits(self._request.budget_bytes, first),
                hint="`tuner space` shows what each plan needs.",
            )
        row = self._registry.begin_study(
            self._request.identity(inventory, self._environment),
            model=self._request.model.ref,
            workload=self._request.workload,
            environment=self._environment,
            request=self._request.provenance(),
            now=self._clock.now(),
        )
        kept = self._registry.trials(row.id)
        self._listener(StudyStarted(row.id, len(kept)))
        try:
            return self._run_study(row, inventory, kept)
        except (KeyboardInterrupt, Interrupted):
            self._registry.finish_study(
                row.id, status="interrupted", summary={}, now=self._clock.now()
            )
            raise

    def _run_study(
        self, row: StudyRow, inventory: ModelInventory, kept: Sequence[Trial]
    ) -> StudyOutcome:
        folder = self._settings.cache_dir / STUDY_FOLDER / row.id
        desk = TrialDesk(
            self._request, self._runner, self._registry, folder, self._clock, self._listener
        )
        baseline = self._baseline(desk, row, inventory, kept)
        search = self._make_search(inventory, baseline, kept)
        self._listener(StageStarted("search", ""))
        while (proposal := search.ask(self._remaining_s())) is not None:
            self._try(desk, row, search, proposal, inventory)
        outcome = self._publish(row, search, inventory, baseline)
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _inventory(self) -> ModelInventory:
        self._listener(StageStarted("inventory", self._request.model.ref.name))
        desk = TrialDesk(
            self._request,
            self._runner,
            self._registry,
            self._settings.scratch_dir,
            self._clock,
            self._listener,
        )
        return counted_inventory(
            self._registry,
            self._request.model,
            self._request.workload,
            self._environment.runtime,
            take=lambda: desk.take_inventory().inventory,
            now=self._clock.now(),
        )

    def _cost_model(
        self, inventory: ModelInventory, corrections: Corrections | None = None
    ) -> CostModel:
        isa = self._environment.runtime.cpu_isa
        return CostModel(inventory, self._environment.hardware, corrections, cpu_isa=isa)

    def _survey(self, inventory: ModelInventory, model: CostModel) -> Survey:
        return survey(
            inventory,
            self._environment,
            self._request.workload,
            self._request.budget_bytes,
            self._request.host_budget_bytes,
            model,
        )

    def _baseline(
        self, desk: TrialDesk, row: StudyRow, inventory: ModelInventory, kept: Sequence[Trial]
    ) -> Trial:
        """The first baseline placement that runs within the budget; kept from before if its
        reference is still there."""
        plans = baseline_plans(inventory, self._environment)
        done = {trial.plan.digest: trial for trial in kept if trial.rung == "pipeline"}
        model = self._cost_model(inventory)
        self._listener(StageStarted("baseline", ""))
        reasons = []
        for plan in plans:
            before = done.get(plan.digest)
            if before and before.measurement and desk.reference_dir.is_dir():
                return before
            estimate = model.estimate(plan, self._request.workload, self._request.steps)
            label = describe(plan, inventory)
            if estimate.peak_vram_bytes > self._request.budget_bytes * BASELINE_TOLERANCE:
                reasons.append(f"{label}: needs about {format_bytes(estimate.peak_vram_bytes)}")
                continue
            run = partial(desk.baseline, plan, estimate)
            finished = self._watched("pipeline", label, run)
            self._registry.add_trial(row.id, finished.trial)
            if finished.trial.measurement is not None:
                return finished.trial
            failure = finished.trial.failure
            reasons.append(f"{label}: {failure.message if failure else 'no result'}")
        raise TrialFailed(
            "no baseline could run within the budget: " + "; ".join(reasons),
            hint="`tuner show STUDY` lists the trials and their logs.",
        )

    def _make_search(
        self, inventory: ModelInventory, baseline: Trial, kept: Sequence[Trial]
    ) -> Search:
        """Candidates estimated again with what the baseline taught; finished trials told."""
        frozen = self._cost_model(inventory).estimate(
            baseline.plan, self._request.workload, self._request.steps
        )
        corrections = learn([(baseline.plan, frozen, measured(baseline))], inventory)
        found = self._survey(inventory, self._cost_model(inventory, corrections))
        corrected = self._cost_model(inventory, corrections).estimate(
            baseline.plan, self._request.workload, self._request.steps
        )
        reference = Candidate(baseline.plan, corrected)
        search = Search(
            found.kept or (reference,),
            objective=self._request.objective,
            workload=self._request.workload,
            steps=self._request.steps or inventory.default_steps,
            denoiser=inventory.denoiser.name,
            reference=reference,
            budget_bytes=self._request.budget_bytes,
            exhaustive=self._request.exhaustive,
        )
        for trial in (*kept, baseline):
            self._tell(search, trial)
        return search

    def _tell(self, search: Search, trial: Trial) -> None:
        search.tell(trial)
        if trial.measurement is not None:
            self._measured[trial.rung, trial.plan.digest] = trial.measurement

    def _try(
        self,
        desk: TrialDesk,
        row: StudyRow,
        search: Search,
        proposal: Proposal,
        inventory: ModelInventory,
    ) -> None:
        label = describe(proposal.plan, inventory)
        if proposal.rung == "replay":
            run = partial(self._replay, desk, proposal)
        else:
            run = partial(
                desk.measure, proposal.rung, proposal.plan, proposal.estimate, proposal.limit_s
            )
        finished = self._watched(proposal.rung, label, run)
        self._registry.add_trial(row.id, finished.trial)
        self._tell(search, finished.trial)
        self._announce_best(search, inventory)

    def _watched(self, rung: Rung, label: str, run: Callable[[], Finished]) -> Finished:
        self._numbers += 1
        self._listener(TrialStarted(rung, label, self._numbers))
        finished = run()
        self._listener(TrialFinished(finished.trial, label))
        return finished

    def _replay(self, desk: TrialDesk, proposal: Proposal) -> Finished:
        """Warm, from the captured artifact, then a cold start if time allows. A replay that does
        not repeat what was proved becomes a failure."""
        plan, estimate = proposal.plan, proposal.estimate
        artifact = self._captured(desk, plan)
        finished = desk.replay(plan, estimate, artifact, whole=True, limit_s=proposal.limit_s)
        if artifact is not None and (reason := _artifact_problem(finished)):
            self._note(f"{plan.digest[:12]}: its compile cache {reason} and is not published")
            del self._artifacts[plan.digest]
            artifact = None
            if finished.trial.measurement is None:
                finished = desk.replay(plan, estimate, None, whole=True, limit_s=proposal.limit_s)
        finished = _held_to_proof(finished, self._measured.get(("pipeline", plan.digest)))
        if artifact is None or finished.trial.measurement is None or not self._time_for(finished):
            return finished
        cold = desk.replay(plan, estimate, None, whole=False, limit_s=None)
        return _with_cold_start(finished, cold)

    def _captured(self, desk: TrialDesk, plan: Plan) -> ArtifactRef | None:
        path = desk.artifact_path(plan)
        if path.is_file() and plan.digest not in self._artifacts:
            kept = self._registry.put_artifact("compile_cache", path)
            self._artifacts[plan.digest] = kept
        return self._artifacts.get(plan.digest)

    def _time_for(self, finished: Finished) -> bool:
        remaining_s = self._remaining_s()
        return remaining_s is None or remaining_s * COLD_SHARE > finished.trial.duration_s

    def _remaining_s(self) -> float | None:
        if self._request.time_limit_s is None:
            return None
        return self._request.time_limit_s - (self._clock.monotonic_s() - self._started_s)

    def _announce_best(self, search: Search, inventory: ModelInventory) -> None:
        standing = search.best()
        if standing is None or standing.plan.digest == self._best:
            return
        known = self._measured.get((standing.rung, standing.plan.digest))
        if known is None:
            return
        self._best = standing.plan.digest
        self._listener(
            BestChanged(
                describe(standing.plan, inventory),
                known.step_ms,
                known.latency_s,
                known.memory.peak_vram_bytes,
            )
        )

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._listener(Note(text))

    def _publish(
        self, row: StudyRow, search: Search, inventory: ModelInventory, baseline: Trial
    ) -> StudyOutcome:
        """Every proved finalist and the study's end, in one transaction."""
        self._listener(StageStarted("publish", ""))
        records = [self._record(row, proven, inventory, baseline) for proven in search.proven()]
        untried = tuple(
            f"{describe(item.plan, inventory)}: {item.reason}" for item in search.untried()
        )
        summary = {"records": len(records), "untried": len(untried), "notes": list(self._notes)}
        now = self._clock.now()
        ids = self._registry.publish(
            records, now=now, keys=self._keys, end=StudyEnd(row.id, "finished", summary)
        )
        return StudyOutcome(
            study_id=row.id,
            published=ids,
            best=records[0] if records else None,
            baseline=baseline.measurement,
            trials=len(self._registry.trials(row.id)),
            untried=untried,
            notes=tuple(self._notes),
        )

    def _record(
        self, row: StudyRow, proven: Proven, inventory: ModelInventory, baseline: Trial
    ) -> TuningRecord:
        artifact = self._artifacts.get(proven.plan.digest)
        return make_record(
            self._request,
            inventory,
            self._environment,
            proven,
            baseline,
            artifacts=(artifact,) if artifact else (),
            study=row.id,
            now=self._clock.now(),
        )


def _artifact_problem(finished: Finished) -> str | None:
    """Why a replay's artifact is no good; None also where time or memory ended the replay."""
    if finished.result is not None:
        return None if finished.result.cache_hits > 0 else "saves nothing"
    failure = finished.trial.failure
    if failure is None or failure.kind in ("timeout", "out_of_memory"):
        return None
    return f"broke the start ({failure.kind})"


def _held_to_proof(finished: Finished, proof: Measurement | None) -> Finished:
    replayed = finished.trial.measurement
    if replayed is None or proof is None:
        return finished
    problems = replay_problems(proof, replayed)
    if not problems:
        return finished
    failure = Failure(kind="error", message="not reproduced: " + "; ".join(problems))
    trial = finished.trial.model_copy(update={"failure": failure, "measurement": None})
    return replace(finished, trial=trial)


def _with_cold_start(finished: Finished, cold: Finished) -> Finished:
    warm, started = finished.trial.measurement, cold.trial.measurement
    if warm is None or started is None:
        return finished
    both = warm.model_copy(update={"cold_first_image_s": started.cold_first_image_s})
    trial = finished.trial.model_copy(
        update={
            "measurement": both,
            "duration_s": finished.trial.duration_s + cold.trial.duration_s,
        }
    )
    return replace(finished, trial=trial)


def _space_detail(found: Survey) -> str:
    return f"{len(found.kept)} candidates, {len(found.dropped)} dropped"


def _nothing_fits(budget_bytes: int, found: Survey) -> str:
    smallest = found.smallest_budget_bytes
    needed = f"; the smallest that would is about {format_bytes(smallest)}" if smallest else ""
    return f"no plan fits in {format_bytes(budget_bytes)}{needed}"
