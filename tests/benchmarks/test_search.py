"""Replays of recorded trials: what may be asked, what is answered, and what is told of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from benchmarks import comparing, replay, search
from benchmarks.ablations import ABLATIONS
from benchmarks.contenders import PREDICTED, RANDOM, Contender, Tpe, TunerSearch
from benchmarks.recorded import RecordedTrial, TrialFile, read_all
from benchmarks.replay import Landscape, Machine, landscapes
from registry.errors import InvalidInput
from registry.plan import PipelineOptions, Plan
from registry.record import Rung, Trial
from tests.benchmarks.recorded_space import (
    BUDGET_BYTES,
    MB,
    failed,
    recorded,
    space,
    step_ms,
    verdict,
)
from tuner.search.parts import EXHAUSTIVE, Parts

SEEDS = range(3)


@cache
def plain() -> Landscape:
    return space(mad_share=0.01)


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "NOISE", 0.0)


@dataclass
class Asked:
    """Every trial that a search had run."""

    trials: list[Trial] = field(default_factory=list)

    def machine(self, landscape: Landscape, seed: int) -> Machine:
        asked = self.trials

        class Noting(Machine):
            def run(self, rung: Rung, plan: Plan, limit_s: float | None = None) -> Trial:
                asked.append(super().run(rung, plan, limit_s))
                return asked[-1]

        return Noting(landscape, seed)


def contenders() -> list[Contender]:
    found: list[Contender] = [TunerSearch(), RANDOM, PREDICTED]
    try:
        import optuna  # noqa: F401
    except ImportError:
        return found
    return [*found, Tpe()]


def is_fast(plan: Plan) -> bool:
    """Those that a search ends at, and most others of their scheme."""
    return step_ms(plan) < 43.0


def test_only_recorded_plans_are_proposed_none_twice_at_a_rung() -> None:
    asked = Asked()
    result = TunerSearch(machine=asked.machine).run(plain(), 0, None)
    tried = [(trial.rung, trial.plan.digest) for trial in asked.trials]
    assert len(set(tried)) == len(tried) == result.trials + result.proofs
    known = {*plain().by_plan, plain().baseline.trial.plan.digest}
    assert {plan for _, plan in tried} <= known


def test_a_plan_that_was_not_recorded_has_no_answer() -> None:
    stranger = Plan(pipeline=PipelineOptions(components={}, text_tokens=77))
    with pytest.raises(InvalidInput, match="was not recorded"):
        Machine(plain(), 0).run("denoiser", stranger)


@pytest.mark.parametrize("contender", [*contenders(), *ABLATIONS], ids=lambda item: item.name)
def test_a_replay_follows_from_its_seed(contender: Contender) -> None:
    limit_s = 0.1 * plain().exhaustive_s
    once, again = (contender.run(plain(), 1, limit_s) for _ in range(2))
    assert once == again
    assert once.time_s <= limit_s * 1.0001


def test_noise_follows_from_the_seed_and_is_around_the_recorded_figures() -> None:
    plan = plain().best_plan
    true_ms = step_ms(plan)
    seen = [_step_ms(Machine(plain(), seed).run("denoiser", plan)) for seed in range(40)]
    assert len(set(seen)) == len(seen)
    assert seen[0] == _step_ms(Machine(plain(), 0).run("denoiser", plan))
    assert sum(seen) / len(seen) == pytest.approx(true_ms, rel=0.01)
    assert max(abs(value / true_ms - 1) for value in seen) < 0.05


def test_an_exhaustive_search_has_no_regret(without_noise: None) -> None:
    exhaustive = TunerSearch(parts=Parts(stages=EXHAUSTIVE))
    landscape = space()
    result = exhaustive.run(landscape, 0, None)
    assert result.trials == len(landscape.by_plan)
    assert landscape.regret(result.plan) == 0.0


def test_the_search_finds_nearly_the_best_in_a_part_of_the_time() -> None:
    results = [TunerSearch().run(plain(), seed, None) for seed in SEEDS]
    assert all(result.proved for result in results)
    assert max(plain().regret(result.plan) for result in results) <= 0.02
    assert max(result.trials for result in results) < len(plain().by_plan) / 2


@pytest.mark.parametrize("contender", contenders(), ids=lambda item: item.name)
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_nobody_takes_more_time_than_there_is(contender: Contender, share: float) -> None:
    limit_s = share * plain().exhaustive_s
    result = contender.run(plain(), 0, limit_s)
    assert result.time_s <= limit_s * 1.0001


def test_regret_counts_from_the_best_plan_that_is_an_answer() -> None:
    def refuse(trial: Trial) -> Trial:
        return trial.model_copy(update={"quality": verdict(5.0)}) if is_fast(trial.plan) else trial

    landscape = space(refuse)
    fast = next(item for item in landscape.by_plan.values() if is_fast(item.trial.plan))
    assert landscape.regret(fast.trial.plan) == math.inf
    assert landscape.regret(landscape.best_plan) == 0.0
    assert not is_fast(landscape.best_plan)
    assert landscape.regret(None) == math.inf


def test_a_search_without_a_gate_gives_out_a_refused_picture() -> None:
    def refuse(trial: Trial) -> Trial:
        return trial.model_copy(update={"quality": verdict(5.0)}) if is_fast(trial.plan) else trial

    landscape = space(refuse)
    ungated = next(item for item in ABLATIONS if item.name == "gate")
    assert landscape.regret(ungated.run(landscape, 0, None).plan) == math.inf
    assert landscape.regret(TunerSearch().run(landscape, 0, None).plan) <= 0.02


def test_failures_take_time_and_are_no_answers() -> None:
    landscape = space(lambda trial: failed(trial) if is_fast(trial.plan) else trial)
    for contender in contenders():
        result = contender.run(landscape, 0, None)
        assert result.plan is None or not is_fast(result.plan), contender.name
    broken = next(item for item in landscape.by_plan.values() if is_fast(item.trial.plan))
    machine = Machine(landscape, 0)
    assert machine.run("pipeline", broken.trial.plan).failure is not None
    assert machine.elapsed_s == broken.trial.duration_s


def test_a_smaller_budget_turns_peaks_over_it_into_failures() -> None:
    (small,) = landscapes(recorded(), budget_bytes=50 * MB)
    assert Machine(small, 0).run("denoiser", next(iter(small.candidates)).plan).failure is not None
    with pytest.raises(InvalidInput, match="no recorded plan ran within the budget"):
        _ = small.best_s
    assert space().budget_bytes == BUDGET_BYTES


def test_a_trial_that_takes_too_long_is_cut_off() -> None:
    machine = Machine(plain(), 0)
    cut = machine.run("denoiser", plain().best_plan, 3.0)
    assert (cut.failure and cut.failure.kind, cut.duration_s) == ("timeout", 3.0)
    assert machine.elapsed_s == 3.0


def test_whole_requests_come_from_their_own_recording_where_there_is_one(
    without_noise: None,
) -> None:
    items = recorded()
    plan = items[5].trial.plan
    made_up = Machine(space(), 0).run("pipeline", plan).measurement
    measured = items[0].trial.model_copy(update={"plan": plan, "duration_s": 77.0})
    whole = items[5].model_copy(update={"trial": measured})
    (landscape,) = landscapes([*items, whole])
    own = Machine(landscape, 0).run("pipeline", plan).measurement
    assert made_up is not None
    assert own is not None
    assert own.latency_s == pytest.approx(items[0].trial.measurement.latency_s)  # type: ignore[union-attr]
    assert own.latency_s != pytest.approx(made_up.latency_s)


def test_a_clean_trial_counts_before_one_beside_foreign_load() -> None:
    items = recorded()
    measured = items[3].trial.measurement
    assert measured is not None
    busy = items[3].trial.model_copy(
        update={"measurement": measured.model_copy(update={"contaminated": "others"})}
    )
    contaminated = items[3].model_copy(update={"trial": busy})
    (landscape,) = landscapes([items[0], contaminated, *items[1:]])
    assert not any(item.is_contaminated for item in landscape.by_plan.values())


def test_the_benchmark_prints_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [item for item in ABLATIONS if item.name in {"what failures imply", "widening"}]
    monkeypatch.setattr(comparing, "ABLATIONS", few)
    path = _file(tmp_path, recorded())
    arguments = [str(path), "--seeds", "2", "--ablation-seeds", "2"]
    arguments += ["--share", "0.25", "--no-optuna"]
    assert search.main(arguments) == 0
    told = capsys.readouterr().out
    assert "Regret: tiny-flux 64x64" in told
    assert "what failures imply" in told
    assert search.main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in data["compared"]} == {"tuner", "predicted order", "random"}
    assert len(data["ablated"]) == 2 * (len(few) + 1)
    assert all(len(row["regrets"]) == 2 for row in data["compared"])


def test_a_file_without_a_baseline_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, recorded()[1:])
    assert search.main([str(path)]) == 2
    assert "Record them without --no-baseline" in capsys.readouterr().err


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    items = recorded()[:3]
    assert read_all([_file(tmp_path, items)]) == items


def _file(folder: Path, items: tuple[RecordedTrial, ...]) -> Path:
    file = TrialFile(folder / "trials.jsonl")
    for item in items:
        file.append(item)
    return file.path


def _step_ms(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.step_ms
