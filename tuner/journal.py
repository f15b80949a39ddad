"""What a study does as it does it: kept in the registry first, then told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable

from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import Rung, Trial
from registry.store import Registry
from tuner.desk import Finished
from tuner.events import Listener, Note, StageStarted, TrialFinished, TrialStarted
from tuner.labels import describe


class Journal:
    """Of one study. `kept` are the trials that finished in runs before this one, `audited` those
    of them that an audit ran: neither baseline nor search must take them for their own."""

    def __init__(
        self, registry: Registry, study_id: str, inventory: ModelInventory, listener: Listener
    ) -> None:
        before = registry.trials(study_id)
        self.kept = tuple(trial for trial in before if trial.dropped is None)
        self.audited = tuple(trial for trial in before if trial.dropped is not None)
        self._registry, self._study_id = registry, study_id
        self._inventory, self._listener = inventory, listener
        self._started = len(before)
        self._notes: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def own_trials(self) -> tuple[Trial, ...]:
        """Every finished trial of baseline and search, of this run and those before."""
        every = self._registry.trials(self._study_id)
        return tuple(trial for trial in every if trial.dropped is None)

    def label(self, plan: Plan) -> str:
        """The plan in a few words."""
        return describe(plan, self._inventory)

    def stage(self, name: str) -> None:
        self._listener(StageStarted(name))

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._listener(Note(text))

    def trial(self, rung: Rung, plan: Plan, run: Callable[[], Finished]) -> Trial:
        """Runs it. A listener hears of its end when nothing can undo it any more."""
        self._started += 1
        label = self.label(plan)
        self._listener(TrialStarted(rung, label, self._started))
        trial = run().trial
        self._registry.add_trial(self._study_id, trial)
        self._listener(TrialFinished(trial, label))
        return trial
