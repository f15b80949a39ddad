"""Ways to look for the best of some recorded plans: the project's search, and what it is held up
to. All are given the same candidates with the same predictions, and the same time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from benchmarks.replay import Landscape, Machine, is_accepted
from registry.plan import Plan
from registry.record import Failure, Trial
from tuner.candidate import Candidate
from tuner.gate import compare_replay
from tuner.search import Proposal, Search
from tuner.search.entry import ESTIMATE_GRAIN
from tuner.search.features import features
from tuner.search.parts import WHOLE, Parts


@dataclass(frozen=True)
class Result:
    """`plan` is the answer, None where there is none; `proved` where it was run whole and replayed.
    `trials` are those at the denoiser rung, `proofs` those after it; `time_s` is of all."""

    plan: Plan | None
    proved: bool
    trials: int
    proofs: int
    time_s: float


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    def run(self, landscape: Landscape, seed: int, limit_s: float | None) -> Result:
        """The same for the same arguments. `limit_s` None lets it stop by itself."""
        ...


@dataclass(frozen=True)
class TunerSearch:
    """The project's own, asked and told as a study does it. `spent_s` of its time was gone before
    its first trial."""

    name: str = "tuner"
    spent_s: float = 0.0
    parts: Parts = WHOLE
    candidates: Callable[[Landscape], Sequence[Candidate]] = lambda item: item.candidates
    reference: Callable[[Landscape], Candidate] = lambda item: item.reference
    machine: Callable[[Landscape, int], Machine] = Machine

    def run(self, landscape: Landscape, seed: int, limit_s: float | None) -> Result:
        machine = self.machine(landscape, seed)
        machine.elapsed_s += self.spent_s
        search = self._search(landscape, seed)
        search.tell(machine.baseline())
        told: list[Trial] = []
        while proposal := search.ask(_left_s(limit_s, machine)):
            told.append(_trial(machine, proposal, told))
            search.tell(told[-1])
        proven, standing = search.proven(), search.best()
        plan = proven[0].plan if proven else (standing.plan if standing else None)
        denoiser = sum(trial.rung == "denoiser" for trial in told)
        return Result(plan, bool(proven), denoiser, len(told) - denoiser, machine.elapsed_s)

    def _search(self, landscape: Landscape, seed: int) -> Search:
        """Predictions closer than the search tells apart come in another order for each seed."""
        chance = random.Random(f"order {seed}")  # noqa: S311 - an order, no secret
        candidates = [_nudged(item, chance) for item in self.candidates(landscape)]
        return Search(
            candidates,
            objective=landscape.judge.objective,
            workload=landscape.judge.workload,
            steps=landscape.steps,
            denoiser=landscape.denoiser,
            reference=self.reference(landscape),
            budget_bytes=landscape.budget_bytes,
            parts=self.parts,
        )


@dataclass(frozen=True)
class InOrder:
    """Tries plans in an order that nothing changes; the best measured one is proved."""

    name: str
    order: Callable[[Landscape, random.Random], Sequence[Plan]]

    def run(self, landscape: Landscape, seed: int, limit_s: float | None) -> Result:
        chance = random.Random(f"{self.name} {seed}")  # noqa: S311 - an order, no secret
        plans = iter(self.order(landscape, chance))
        return _try_all(landscape, seed, limit_s, lambda _: next(plans, None))


def _shuffled(landscape: Landscape, chance: random.Random) -> Sequence[Plan]:
    plans = [item.plan for item in landscape.candidates]
    chance.shuffle(plans)
    return plans


def _by_prediction(landscape: Landscape, chance: random.Random) -> Sequence[Plan]:
    nudged = [_nudged(item, chance) for item in landscape.candidates]
    return [item.plan for item in sorted(nudged, key=lambda item: item.estimate.latency_s)]


RANDOM = InOrder("random", _shuffled)
PREDICTED = InOrder("predicted order", _by_prediction)


@dataclass(frozen=True)
class Tpe:
    """Optuna's TPE over the values of each choice. What it suggests need not be a recorded plan:
    then the open one that differs in the fewest choices is tried, and told as what it is."""

    name: str = "Optuna TPE"

    def run(self, landscape: Landscape, seed: int, limit_s: float | None) -> Result:
        sampler = _Tpe(landscape, seed)
        return _try_all(landscape, seed, limit_s, sampler.next)


@dataclass(frozen=True)
class _Tried:
    """A plan that ran; `score_s` None where it gave no answer."""

    plan: Plan
    score_s: float | None


class _Tpe:
    def __init__(self, landscape: Landscape, seed: int) -> None:
        self._optuna = load_optuna()
        self._chance = random.Random(f"tpe {seed}")  # noqa: S311 - ties, no secret
        sampler = self._optuna.samplers.TPESampler(seed=seed, multivariate=True)
        self._study = self._optuna.create_study(sampler=sampler)
        self._open = {plan: _axes(plan, landscape.denoiser) for plan in _plans(landscape)}
        values = _values(self._open.values())
        categorical = self._optuna.distributions.CategoricalDistribution
        self._space = {axis: categorical(found) for axis, found in values.items()}
        self._axes = dict(self._open)

    def next(self, last: _Tried | None) -> Plan | None:
        if last is not None:
            self._tell(last)
        if not self._open:
            return None
        asked = self._study.ask(self._space)
        self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        apart = {plan: self._apart(asked.params, axes) for plan, axes in self._open.items()}
        nearest = [plan for plan, count in apart.items() if count == min(apart.values())]
        chosen = self._chance.choice(nearest)
        del self._open[chosen]
        return chosen

    def _tell(self, tried: _Tried) -> None:
        """A plan that gave no answer counts as worse than any that did."""
        states = self._optuna.trial.TrialState
        params = {axis: self._axes[tried.plan].get(axis, "") for axis in self._space}
        self._study.add_trial(
            self._optuna.create_trial(
                params=params,
                distributions=self._space,
                value=tried.score_s,
                state=states.PRUNED if tried.score_s is None else states.COMPLETE,
            )
        )

    def _apart(self, asked: dict[str, str], axes: dict[str, str]) -> int:
        return sum(axes.get(axis, "") != value for axis, value in asked.items())


def _try_all(
    landscape: Landscape,
    seed: int,
    limit_s: float | None,
    propose: Callable[[_Tried | None], Plan | None],
) -> Result:
    """Denoiser trials of what is proposed while there is time to prove the best of them."""
    machine, best, trials = Machine(landscape, seed), _Tried(landscape.reference.plan, None), 0
    last: _Tried | None = None
    while (plan := propose(last)) is not None:
        left_s = _left_s(limit_s, machine)
        room_s = None if left_s is None else left_s - _proof_s(landscape, best)
        trial = machine.run("denoiser", plan, room_s)
        if room_s is not None and trial.duration_s >= room_s:
            break
        last = _Tried(plan, _score_s(landscape, plan, trial))
        trials += 1
        if last.score_s is not None and (best.score_s is None or last.score_s < best.score_s):
            best = last
    left_s, proof_s = _left_s(limit_s, machine), _proof_s(landscape, best)
    found = best.score_s is not None
    proved = found and (left_s is None or proof_s <= left_s)
    time_s = machine.elapsed_s + (proof_s if proved else 0.0)
    return Result(best.plan if found else None, proved, trials, 2 * proved, time_s)


def _proof_s(landscape: Landscape, best: _Tried) -> float:
    return 0.0 if best.score_s is None else landscape.proof_s(best.plan)


def _score_s(landscape: Landscape, plan: Plan, trial: Trial) -> float | None:
    item = landscape.by_plan[plan.digest]
    if trial.measurement is None or not is_accepted(item):
        return None
    estimate = item.trial.estimate or item.roofline
    return landscape.judge.projected(trial.measurement, estimate).value_s


def _left_s(limit_s: float | None, machine: Machine) -> float | None:
    return None if limit_s is None else max(0.0, limit_s - machine.elapsed_s)


def _trial(machine: Machine, proposal: Proposal, before: Sequence[Trial]) -> Trial:
    """A replay is held to its proof, and tried once more where only its times missed it, as in a
    study."""
    trial = _held_to_proof(machine.run(proposal.rung, proposal.plan, proposal.limit_s), before)
    if trial.failure is None or trial.failure.kind != "timing":
        return trial
    limit_s = proposal.limit_s
    left_s = None if limit_s is None else limit_s - trial.duration_s
    if left_s is not None and left_s <= trial.duration_s:
        return trial
    again = _held_to_proof(machine.run(proposal.rung, proposal.plan, left_s), before)
    return again.model_copy(update={"duration_s": trial.duration_s + again.duration_s})


def _held_to_proof(trial: Trial, before: Sequence[Trial]) -> Trial:
    """A failure where it does not repeat what was proved."""
    proofs = (t for t in before if t.rung == "pipeline" and t.plan == trial.plan)
    proof = next((t.measurement for t in proofs if t.measurement), None)
    if trial.rung != "replay" or trial.measurement is None or proof is None:
        return trial
    repeat = compare_replay(proof, trial.measurement)
    if not repeat.problems:
        return trial
    failure = Failure(
        kind="error" if repeat.substance else "timing", message="; ".join(repeat.problems)
    )
    return trial.model_copy(update={"measurement": None, "failure": failure})


def _nudged(item: Candidate, chance: random.Random) -> Candidate:
    factor = math.exp(chance.uniform(-0.5, 0.5) * ESTIMATE_GRAIN)
    estimate = item.estimate
    update = {"step_ms": estimate.step_ms * factor, "latency_s": estimate.latency_s * factor}
    return replace(item, estimate=estimate.model_copy(update=update))


def _plans(landscape: Landscape) -> Iterator[Plan]:
    return (item.plan for item in landscape.candidates)


def _axes(plan: Plan, denoiser: str) -> dict[str, str]:
    """Choices by their names."""
    return dict(text.split("=", 1) for text in features(plan, denoiser))


def _values(known: Any) -> dict[str, list[str]]:
    """Of each choice, where plans differ in it."""
    found: dict[str, set[str]] = {}
    every = list(known)
    for axis in {axis for axes in every for axis in axes}:
        found[axis] = {axes.get(axis, "") for axes in every}
    return {axis: sorted(values) for axis, values in sorted(found.items()) if len(values) > 1}


def load_optuna() -> Any:
    """Raises ImportError saying how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "Optuna is not installed: pip install 'diffusion-tuner[bench]', or --no-optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
