"""One tuning run, start to publish.

Inventory, space, baseline, search and its trials, replay, records. Every finished trial is in the
registry before the next begins, so a run that was killed continues where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from registry.environment import Environment
from registry.errors import Interrupted, TrialFailed
from registry.inventory import ModelInventory
from registry.leases import Lease
from registry.record import Failure, Measurement, Rung, Trial, TuningRecord
from registry.signing import SigningKeys
from registry.store import Registry
from registry.studies import StudyEnd, StudyEndStatus, StudyRow
from registry.timing import Timing
from tuner.auditing import answers_of, audit_of
from tuner.baseline import choose_baseline
from tuner.block_rung import BlockRung, Timed
from tuner.clock import Clock, TimeLimit
from tuner.config import Settings
from tuner.desk import Finished, TrialDesk
from tuner.detect import Detection
from tuner.events import BestChanged, Listener, StageStarted, StudyStarted
from tuner.front import front_of
from tuner.hub_cache import cached_weights
from tuner.inventories import counted_inventory
from tuner.journal import Journal
from tuner.mixing import Mixture, mixtures_of
from tuner.planning import Planning, refuse_if_nothing_fits
from tuner.protocol import TimingTarget
from tuner.publishing import make_record, why_nothing
from tuner.replay import Replayer, standing
from tuner.request import StudyOutcome, StudyRequest
from tuner.runner import Runner
from tuner.search import Proposal, Proven, Search
from tuner.space import Survey
from tuner.study_folder import STUDY_FOLDER, collect_abandoned, working_in
from tuner.timing_store import RegistryTimings

__all__ = ["StudyOutcome", "StudyRequest", "run_study"]


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
    lease: Lease | None = None,
) -> StudyOutcome:
    """Find, prove and publish the plans that answer `request` on this machine. `lease` is that of
    the job this is done for: once lost, nothing is published.

    Raises NothingFits (naming the smallest budget that would do); TrialFailed where the model
    itself or no baseline can run; DeviceBusy where another run is at this very study; Interrupted
    or KeyboardInterrupt when stopped: then the study is marked interrupted, nothing of it is
    published, and the same request continues it. Raises LeaseLost.
    """
    time_limit = TimeLimit(clock, request.time_limit_s)

    def desk_at(folder: Path) -> TrialDesk:
        return TrialDesk(request, runner, registry, folder, clock, listener)

    listener(StageStarted("inventory", request.model.ref.name))
    inventory = counted_inventory(
        registry,
        request.model,
        request.workload,
        detection.environment.runtime,
        take=lambda: desk_at(settings.scratch_dir).take_inventory().inventory,
        now=clock.now(),
        cached=cached_weights(request.model, settings.hub_cache_dir),
    )
    planning = Planning(request, inventory, detection.environment)
    found = planning.survey()
    listener(StageStarted("space", _space_detail(found)))
    refuse_if_nothing_fits(found, request)
    row = registry.begin_study(
        request.identity(inventory, detection.environment),
        model=request.model.ref,
        workload=request.workload,
        environment=detection.environment,
        request=request.provenance(),
        now=clock.now(),
    )
    desk = desk_at(settings.cache_dir / STUDY_FOLDER / row.id)
    with working_in(desk.folder, clock.now()):
        collect_abandoned(desk.folder.parent, registry, clock.now())
        parts = (planning, desk, registry, keys, clock, time_limit, listener, lease)
        return _Study(row, inventory, *parts).run()


class _Study:
    """A study that has begun: its row, its trials, its end."""

    def __init__(
        self,
        row: StudyRow,
        inventory: ModelInventory,
        planning: Planning,
        desk: TrialDesk,
        registry: Registry,
        keys: SigningKeys,
        clock: Clock,
        time_limit: TimeLimit,
        listener: Listener,
        lease: Lease | None,
    ) -> None:
        self._row, self._inventory, self._planning, self._desk = row, inventory, planning, desk
        self._registry, self._keys, self._clock = registry, keys, clock
        self._time_limit, self._listener, self._lease = time_limit, listener, lease
        self._environment: Environment = row.environment
        self._journal = Journal(registry, row.id, inventory, listener)
        self._replayer = Replayer(
            desk, registry, time_limit, self._journal.note, self._journal.label
        )
        self._timings = RegistryTimings(registry, row.environment, clock.now)
        self._mixture: Mixture | None = None
        self._measured: dict[tuple[Rung, str], Measurement] = {}
        self._best: str | None = None
        self._status: StudyEndStatus = "interrupted"
        self._summary: dict[str, Any] = {}
        # Published already: then only the audit was left, and is gone on with.
        self._answers = answers_of(registry, row)

    def run(self) -> StudyOutcome:
        """The folder stays where a later run can go on with it."""
        try:
            self._listener(StudyStarted(self._row.id, len(self._journal.kept)))
            outcome = self._tune()
        except (KeyboardInterrupt, Interrupted):
            self._end("interrupted")
            raise
        except TrialFailed:
            self._end("failed")
            self._remove_folder()
            raise
        if self._status == "finished":
            self._remove_folder()
        return outcome

    def _tune(self) -> StudyOutcome:
        self._journal.stage("baseline")
        baseline = choose_baseline(
            self._planning.baselines(),
            self._desk,
            self._journal,
            self._time_limit,
            self._environment.hardware.vram_bytes,
        )
        self._learn_blocks(baseline)
        search = self._search(baseline)
        self._journal.stage("search")
        while not self._answers and (proposal := search.ask(self._time_limit.remaining_s)):
            run = partial(self._run, proposal)
            self._tell(search, self._journal.trial(proposal.rung, proposal.plan, run))
            self._announce_best(search)
        return self._audited(self._publish(search, baseline), search, baseline)

    def _search(self, baseline: Trial) -> Search:
        """With what is known by now; told of every trial that stands."""
        search = self._planning.search(baseline)
        for trial in (*standing(self._journal.kept), baseline):
            self._tell(search, trial)
        return search

    def _learn_blocks(self, baseline: Trial) -> None:
        """Nothing for the oracle: it measures everything, and is what predictions are judged by."""
        timed = None if self._desk.request.exhaustive else self._time_blocks(baseline)
        if timed is not None:
            kept = self._journal.kept
            self._mixture = self._planning.mixture(timed.sums, timed.faster, kept)
            chosen = (self._mixture.quantization,) if self._mixture else ()
            mixed = dict.fromkeys((*chosen, *mixtures_of(kept, self._inventory.denoiser.name)))
            self._planning = self._planning.knowing(timed.sums, tuple(mixed))

    def _time_blocks(self, baseline: Trial) -> Timed | None:
        limited = self._time_limit.remaining_s is not None
        rung = BlockRung(
            self._inventory,
            self._environment,
            self._desk.request.workload,
            self._time_targets,
            self._timings,
            self._journal.note,
            reserved_s=self._search(baseline).proof_s if limited else 0.0,
        )
        plans = [item.plan for item in self._planning.survey().kept]
        return rung.run(baseline, plans, self._time_limit)

    def _time_targets(
        self, targets: Sequence[TimingTarget], limit_s: float | None
    ) -> tuple[tuple[Timing, ...], Failure | None]:
        self._journal.stage("blocks")
        return self._desk.time_targets(targets, limit_s)

    def _run(self, proposal: Proposal) -> Finished:
        plan, estimate = proposal.plan, proposal.estimate
        if proposal.rung != "replay":
            return self._desk.measure(proposal.rung, plan, estimate, proposal.limit_s)
        proof = self._measured.get(("pipeline", plan.digest))
        return self._replayer.replay(plan, estimate, proof)

    def _tell(self, search: Search, trial: Trial) -> None:
        search.tell(trial)
        if trial.measurement is not None:
            self._measured[trial.rung, trial.plan.digest] = trial.measurement

    def _announce_best(self, search: Search) -> None:
        standing = search.best()
        if standing is None or standing.plan.digest == self._best:
            return
        known = self._measured.get((standing.rung, standing.plan.digest))
        if known is None:
            return
        self._best = standing.plan.digest
        label, peak_bytes = self._journal.label(standing.plan), known.memory.peak_vram_bytes
        self._listener(BestChanged(label, known.step_ms, known.latency_s, peak_bytes))

    def _publish(self, search: Search, baseline: Trial) -> StudyOutcome:
        """Every proved finalist and the study's end, in one transaction."""
        self._journal.stage("publish")
        records = [self._record(proven, baseline) for proven in search.proven()]
        for plan in search.in_doubt():
            label = self._journal.label(plan)
            self._journal.note(
                f"{label}: as near the best plan as the machine drifts between trials"
            )
        idle = [(self._journal.label(item.plan), item.reason) for item in search.untried()]
        self._status = self._end_status(bool(records))
        if self._desk.request.audit and not records:
            self._journal.note("no audit: nothing was published that dropped plans could beat")
        if self._planning.step_cache_note is not None:
            self._journal.note(self._planning.step_cache_note)
        notes = self._journal.notes
        trials = self._registry.trials(self._row.id)
        hidden_s = sum(trial.hidden_s for trial in trials)
        self._summary = {
            "records": len(records),
            "untried": len(idle),
            "notes": list(notes),
            "start_up_hidden_s": hidden_s,
        }
        digests = [record.plan.digest for record in records]
        front = front_of(trials, baseline, digests, self._journal.label)
        self._summary["front"] = [place.as_json() for place in front]
        if self._mixture is not None:
            self._summary["autoquant"] = self._mixture.as_data()
        audits = bool(records and self._desk.request.audit)
        end = StudyEnd(self._row.id, "interrupted" if audits else self._status, self._summary)
        published = self._registry.publish(
            records, now=self._clock.now(), keys=self._keys, end=end, lease=self._lease
        )
        return StudyOutcome(
            study_id=self._row.id,
            published=published,
            best=records[0] if records else None,
            baseline=baseline.measurement,
            trials=len(trials),
            hidden_s=hidden_s,
            untried=tuple(f"{label}: {reason}" for label, reason in idle),
            notes=notes,
            why_nothing=None if records else why_nothing(trials, self._desk.request.time_limit_s),
            front=front,
        )

    def _audited(self, outcome: StudyOutcome, search: Search, baseline: Trial) -> StudyOutcome:
        """The answer stands, whatever the audit says. Stopped, the same request goes on with it."""
        if outcome.best is None or not self._desk.request.audit:
            return outcome
        audit = audit_of(self._desk, self._journal, self._planning, search, baseline, outcome.best)
        try:
            audit.run(TimeLimit(self._clock, self._desk.request.audit_limit_s))
        finally:
            report = audit.report()
            self._summary["audit"] = report.as_json()
        self._end("finished")
        return replace(outcome, audit=report)

    def _end_status(self, proved: bool) -> StudyEndStatus:
        """A run that proved nothing, for want of time or by replays that may yet repeat, is
        continued by the next like it."""
        trials = self._registry.trials(self._row.id)
        unsure = len(standing(trials)) < len(trials)
        if proved or (self._time_limit.remaining_s is None and not unsure):
            return "finished"
        self._journal.note("the finished trials are kept: the same command goes on from them")
        return "interrupted"

    def _record(self, proven: Proven, baseline: Trial) -> TuningRecord:
        if proven.plan.digest in self._answers:
            return self._answers[proven.plan.digest]
        artifact = self._replayer.artifact(proven.plan)
        return make_record(
            self._desk.request,
            self._inventory,
            self._environment,
            proven,
            baseline,
            artifacts=(artifact,) if artifact else (),
            study=self._row.id,
            now=self._clock.now(),
        )

    def _end(self, status: StudyEndStatus) -> None:
        now = self._clock.now()
        self._registry.finish_study(self._row.id, status=status, summary=self._summary, now=now)

    def _remove_folder(self) -> None:
        shutil.rmtree(self._desk.folder, ignore_errors=True)


def _space_detail(found: Survey) -> str:
    return f"{len(found.kept)} candidates, {len(found.dropped)} dropped"
