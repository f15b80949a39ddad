"""Does a published plan still do what its record says? Its baseline and then the plan are run
again, each in a fresh process, and held to what was published: latency, peak memory, layers,
pictures.

A verification is kept as a study of its own, and beside the record as the last one of it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from registry.digest import digest, short
from registry.environment import Environment
from registry.errors import InvalidInput, RegistryError, TrialFailed, UntrustedArtifact
from registry.inventory import ModelInventory
from registry.record import ArtifactRef, Estimate, Measurement, Quality, Trial, TuningRecord
from registry.records import StoredRecord
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyRow
from registry.verification import Verification
from tuner.desk import Finished, TrialDesk
from tuner.events import Listener, StageStarted, StudyStarted
from tuner.gate import compare_replay, rejection
from tuner.hub_cache import cached_weights
from tuner.inventories import counted_inventory
from tuner.journal import Journal
from tuner.matching import environment_changes, same_device
from tuner.model_spec import ModelSpec
from tuner.request import DEFAULT_SEEDS, StudyRequest, default_prompts
from tuner.study_folder import STUDY_FOLDER, working_in
from tuner.workplace import Workplace


@dataclass(frozen=True)
class Verified:
    """`verification` None: others were at work on the device, and nothing can be said.

    `changes` is what differs here from where the record was proved, in words: then the result is
    this environment's and not marked at the record. `now` and `quality` are None where the plan
    did not run.
    """

    record: TuningRecord
    study: str
    verification: Verification | None
    changes: tuple[str, ...]
    baseline: Measurement
    now: Measurement | None
    quality: Quality | None
    notes: tuple[str, ...]


def request_of(record: TuningRecord, spec: ModelSpec, *, share: bool) -> StudyRequest:
    """What the record was proved for, asked once more: its own prompts and seeds, side by side."""
    pairs = tuple(dict.fromkeys((item.prompt, item.seed) for item in record.quality.scores))
    return StudyRequest(
        model=spec,
        workload=record.workload,
        budget_bytes=record.budget_bytes,
        host_budget_bytes=record.host_budget_bytes,
        policy=record.quality.policy,
        objective=record.objective,
        steps=record.measurement.shapes[0].steps,
        prompts=tuple(prompt for prompt, _ in pairs) or default_prompts(spec),
        seeds=tuple(seed for _, seed in pairs) or DEFAULT_SEEDS,
        share=share,
    )


def verify_record(
    place: Workplace, stored: StoredRecord, spec: ModelSpec, listener: Listener, *, share: bool
) -> Verified:
    """Run `stored`'s plan again on this machine, and keep what came of it.

    Raises InvalidInput for a record of another device or another model than `spec`, TrialFailed
    where the model or its baseline does not run, and Interrupted or KeyboardInterrupt when stopped:
    then nothing is said of the record.
    """
    record, clock, registry = stored.record, place.clock, place.registry
    refuse_another_device(record, place.detection.environment)
    request = request_of(record, spec, share=share)
    inventory = _inventory(place, request, listener)
    refuse_another_model(record, inventory)
    study = begin(registry, record, place.detection.environment, clock.now())
    folder = place.settings.cache_dir / STUDY_FOLDER / study.id
    desk = TrialDesk(request, place.runner, registry, folder, clock, listener)
    journal = Journal(registry, study.id, inventory, listener)
    keys = SigningKeys(place.settings.config_dir)
    try:
        listener(StudyStarted(study.id))
        with working_in(folder, clock.now()):
            found = Verifying(stored, study, desk, journal, registry, keys).run(clock.now())
    except BaseException:
        registry.finish_study(study.id, status="failed", summary={}, now=clock.now())
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    keep(found, registry, clock.now())
    return found


def _inventory(place: Workplace, request: StudyRequest, listener: Listener) -> ModelInventory:
    def take() -> ModelInventory:
        folder = place.settings.scratch_dir
        desk = TrialDesk(request, place.runner, place.registry, folder, place.clock, listener)
        return desk.take_inventory().inventory

    listener(StageStarted("inventory", request.model.ref.name))
    return counted_inventory(
        place.registry,
        request.model,
        request.workload,
        place.detection.environment.runtime,
        take=take,
        now=place.clock.now(),
        cached=cached_weights(request.model, place.settings.hub_cache_dir),
    )


def refuse_another_model(record: TuningRecord, inventory: ModelInventory) -> None:
    """Raises InvalidInput: what another model does says nothing about this record."""
    known = (record.key.architecture, record.key.weights)
    if (inventory.architecture, inventory.weights) != known:
        raise InvalidInput(
            f"{record.model.name} is not the model that record {short(record.id)} was proved with: "
            "its configuration or its weights are others",
            hint="`tuner run` proves a plan for the model as it is now.",
        )


def refuse_another_device(record: TuningRecord, environment: Environment) -> None:
    """Raises InvalidInput: a plan of one device says nothing about another."""
    if not same_device(environment.hardware, record.environment.hardware):
        theirs, ours = record.environment.hardware.name, environment.hardware.name
        raise InvalidInput(
            f"record {short(record.id)} was proved on {theirs}, and this device is {ours}",
            hint="Verify it where it was proved; `tuner run` finds a plan for this device.",
        )


def begin(
    registry: Registry, record: TuningRecord, environment: Environment, now: datetime
) -> StudyRow:
    """The study that keeps the trials of one verification."""
    request = {"command": "verify", "record": record.id, "budget_bytes": record.budget_bytes}
    return registry.begin_study(
        digest([request, now.isoformat()]),
        model=record.model,
        workload=record.workload,
        environment=environment,
        request=request,
        now=now,
    )


class Verifying:
    """One verification, on a machine of the record's kind of device."""

    def __init__(
        self,
        stored: StoredRecord,
        study: StudyRow,
        desk: TrialDesk,
        journal: Journal,
        registry: Registry,
        keys: SigningKeys,
    ) -> None:
        self._stored, self._record, self._study = stored, stored.record, study
        self._desk, self._journal = desk, journal
        self._registry, self._keys = registry, keys
        self.changes = environment_changes(study.environment, stored.record.environment)

    def run(self, now: datetime) -> Verified:
        """Raises TrialFailed where the baseline does not run: then nothing is said of the plan."""
        baseline = self._baseline()
        artifact = self._artifact()
        replayed = self._replay(artifact)
        if self._is_in_doubt(replayed.trial):
            self._journal.note("run once more: its times differ, or others were at work beside it")
            replayed = self._replay(artifact)
        problems = self._problems(replayed, artifact)
        unclear = bool(problems) and self._was_disturbed(replayed.trial)
        measured = replayed.trial.measurement
        found = Verification(
            record=self._record.id,
            study=self._study.id,
            verified_at=now,
            latency_s=None if measured is None else measured.latency_s,
            peak_vram_bytes=None if measured is None else measured.memory.peak_vram_bytes,
            problems=problems,
        )
        return Verified(
            record=self._record,
            study=self._study.id,
            verification=None if unclear else found,
            changes=self.changes,
            baseline=baseline,
            now=measured,
            quality=replayed.trial.quality,
            notes=self._journal.notes,
        )

    def _baseline(self) -> Measurement:
        """Today's reference of the pictures."""
        plan, estimate = self._record.baseline_plan, _as_estimate(self._record.baseline)
        outside = estimate.peak_vram_bytes > self._record.budget_bytes
        own = self._study.environment.hardware.vram_bytes if outside else None
        run = partial(self._desk.baseline, plan, estimate, None, budget_bytes=own)
        trial = self._journal.trial("pipeline", plan, run)
        if trial.measurement is None:
            reason = trial.failure.message if trial.failure else "no result"
            raise TrialFailed(
                f"the baseline that it was held against does not run here: {reason}",
                hint=f"`tuner show {short(self._study.id)}` has its log.",
            )
        return trial.measurement

    def _replay(self, artifact: ArtifactRef | None) -> Finished:
        """As it was proved, and its pictures held against the reference too."""
        plan, estimate = self._record.plan, self._record.estimate
        ended: list[Finished] = []

        def run() -> Finished:
            ended.append(
                self._desk.replay(plan, estimate, artifact, whole=True, limit_s=None, scored=True)
            )
            return ended[-1]

        self._journal.trial("replay", plan, run)
        return ended[-1]

    def _artifact(self) -> ArtifactRef | None:
        """What an app here would be given with the plan, if it may be trusted."""
        caches = [item for item in self._record.artifacts if item.kind == "compile_cache"]
        if self.changes or not caches:
            return None
        try:
            self._registry.trusted_artifact(self._stored, caches[0], self._keys)
        except (UntrustedArtifact, RegistryError) as error:
            self._journal.note(f"without its compile cache: {error.message}")
            return None
        return caches[0]

    def _problems(self, replayed: Finished, artifact: ArtifactRef | None) -> tuple[str, ...]:
        trial = replayed.trial
        if trial.measurement is None:
            failure = trial.failure
            return (f"it does not run: {failure.message if failure else 'no result'}",)
        problems = list(compare_replay(self._record.measurement, trial.measurement).problems)
        if trial.quality is not None and not trial.quality.passed:
            problems += rejection(trial.quality)
        used = trial.measurement.warm_start
        if artifact is not None and (used is None or used.saves_nothing):
            problems.append("its compile cache saves nothing")
        return tuple(problems)

    def _is_in_doubt(self, trial: Trial) -> bool:
        if trial.measurement is None or self._desk.request.share:
            return False
        repeat = compare_replay(self._record.measurement, trial.measurement)
        return not repeat.substance and bool(repeat.timing or trial.measurement.contaminated)

    def _was_disturbed(self, trial: Trial) -> bool:
        return trial.measurement is not None and trial.measurement.contaminated is not None


def keep(found: Verified, registry: Registry, now: datetime) -> None:
    """The study's end; and beside the record what is true of it, not of another environment."""
    verification = found.verification
    verdict = "unclear" if verification is None else "holds" if verification.holds else "drifted"
    problems = () if verification is None else verification.problems
    summary = {
        "verified": found.record.id,
        "verdict": verdict,
        "problems": list(problems),
        "changes": list(found.changes),
        "notes": list(found.notes),
    }
    registry.finish_study(found.study, status="finished", summary=summary, now=now)
    if verification is not None and not found.changes:
        registry.note_verification(verification)


def _as_estimate(measured: Measurement) -> Estimate:
    """Of a plan that was measured before: what is expected is what it took then."""
    return Estimate(
        peak_vram_bytes=measured.memory.peak_vram_bytes,
        load_peak_vram_bytes=measured.memory.load_peak_vram_bytes,
        host_bytes=measured.memory.host_peak_bytes,
        step_ms=measured.step_ms,
        latency_s=measured.latency_s or 0.0,
        source="record",
    )
