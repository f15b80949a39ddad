"""Whole studies, start to publish, with real processes that answer from a table."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.errors import DeviceBusy, NothingFits, TrialFailed
from registry.record import WarmStart
from registry.workload import Shape
from tests.tuner import flux
from tests.tuner.fake_nvml import FakeNvml
from tests.tuner.study_bench import GB, SCRIPT, SQUARE, ManualClock, StudyBench, keys_of
from tests.tuner.test_runner import our_children
from tuner.compiled_code import CodePart, CompiledCode, pack, unpack
from tuner.events import (
    BestChanged,
    Listener,
    MemorySample,
    Note,
    StageStarted,
    StudyEvent,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from tuner.labels import describe
from tuner.planning import Planning
from tuner.search import Known
from tuner.search.durations import TYPICAL_S

REPLAYED_FROM_CACHE: dict[str, Any] = {"rung": "replay", "artifact": True}


@pytest.fixture
def bench(tmp_path: Path) -> StudyBench:
    return StudyBench(tmp_path)


def test_a_study_proves_and_publishes(bench: StudyBench) -> None:
    outcome = bench.run()
    best = outcome.best
    assert best is not None
    assert outcome.published[0] == best.id == bench.registry.record(best.id).record.id
    assert best.plan.pipeline.component("transformer").compilation.scope != "none"
    assert best.measurement.rung == "replay"
    assert best.speedup > 1.5
    assert best.quality.passed
    assert best.baseline == outcome.baseline
    assert {trial.rung for trial in bench.trials} == {"denoiser", "pipeline", "replay"}
    assert outcome.trials == len(bench.trials) == len(bench.heard(TrialFinished))
    assert bench.study().status == "finished"
    assert bench.leftovers() == []
    assert not list((bench.settings.cache_dir / "studies").iterdir())
    assert bench.registry.check() == []


def test_a_study_tells_what_it_does_in_order(bench: StudyBench) -> None:
    bench.run()
    stages = [event.stage for event in bench.heard(StageStarted)]
    assert stages == ["inventory", "space", "baseline", "search", "publish"]
    numbers = [event.number for event in bench.heard(TrialStarted)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert bench.heard(StudyStarted) == [StudyStarted(bench.study().id, 0)]
    assert bench.heard(BestChanged)


def test_a_compile_cache_is_published_with_cold_and_warm_starts(bench: StudyBench) -> None:
    best = bench.run().best
    assert best is not None
    (artifact,) = best.artifacts
    assert artifact.kind == "compile_cache"
    assert bench.registry.artifact_path(artifact).read_bytes().startswith(b"compiled ")
    assert best.measurement.warm_first_image_s == 0.5
    assert best.measurement.cold_first_image_s == 1.5


def test_the_inventory_is_counted_once(bench: StudyBench) -> None:
    bench.run()
    bench.run(objective="throughput")
    assert [job["kind"] for job in bench.jobs].count("inventory") == 1


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        ({"failure": "unsupported"}, "unsupported"),
        ({"failure": "error"}, "error"),
        ({"failure": "out_of_memory"}, "out_of_memory"),
        ({"signal": "SIGSEGV"}, "crashed"),
        ({"exit": 3}, "crashed"),
        ({"peak_bytes": 3 * GB}, "out_of_memory"),
    ],
    ids=str,
)
def test_failures_on_the_way_cost_their_trials_only(
    bench: StudyBench, then: dict[str, object], kind: str
) -> None:
    bench.rule({**then, "prints": "last words"}, scope="regional")
    best = bench.run().best
    assert best is not None
    assert best.plan.pipeline.component("transformer").compilation.scope != "regional"
    failed = [trial for trial in bench.trials if trial.failure is not None]
    assert {trial.failure.kind for trial in failed if trial.failure} == {kind}
    for trial in failed:
        assert trial.measurement is None
        assert trial.log is not None
        assert "last words" in bench.registry.artifact_path(trial.log).read_text()


def test_logs_of_trials_that_ran_are_kept_only_when_asked(bench: StudyBench) -> None:
    bench.run()
    assert {trial.log for trial in bench.trials} == {None}
    second = bench.run(keep_logs=True).study_id
    assert all(trial.log is not None for trial in bench.registry.trials(second))


def test_a_peak_over_the_budget_says_both(bench: StudyBench) -> None:
    bench.rule({"peak_bytes": 3 * GB}, scope="regional")
    bench.run()
    failures = [trial.failure.message for trial in bench.trials if trial.failure is not None]
    assert "peak of 3.00 GB is over the budget of 2.00 GB" in failures


def test_nothing_fits_names_the_smallest_budget(bench: StudyBench) -> None:
    with pytest.raises(NothingFits, match=r"fits in 10.0 MB; the smallest .* 68") as error:
        bench.run(budget_bytes=10**7)
    assert "tuner space" in str(error.value)
    assert bench.registry.studies() == ()


def test_a_model_that_cannot_be_counted(bench: StudyBench) -> None:
    bench.rule({"failure": "error"}, kind="inventory")
    with pytest.raises(TrialFailed, match="could not be counted: as the table says"):
        bench.run()


def test_no_baseline_fails_the_study(bench: StudyBench) -> None:
    bench.rule({"failure": "unsupported"}, baseline=True)
    with pytest.raises(TrialFailed, match=r"no baseline could run .*: as the table says"):
        bench.run()
    assert bench.study().status == "failed"
    assert bench.leftovers() == []
    with pytest.raises(TrialFailed):
        bench.run()
    assert len(bench.registry.studies()) == 2, "the next run starts afresh"


def test_a_baseline_over_the_budget_is_the_reference_and_no_answer(tmp_path: Path) -> None:
    """On a CPU nothing is offloaded: between int8's size and bf16's only quantized plans fit."""
    bench = StudyBench(tmp_path, environment=flux.cpu())
    bench.rule({"peak_bytes": 60_000_000})
    bench.rule({"peak_bytes": 69_000_000}, scheme="none")
    budget_bytes = 67_000_000
    outcome = bench.run(budget_bytes=budget_bytes)
    assert outcome.best is not None
    assert outcome.best.baseline.memory.peak_vram_bytes == 69_000_000
    assert any("does not fit the budget: it is measured outside" in note for note in outcome.notes)
    for stored in bench.registry.candidates():
        assert stored.record.measurement.memory.peak_vram_bytes <= budget_bytes
    tried = [job for job in bench.jobs if job.get("baseline") or job.get("rung") == "replay"]
    assert [job["scheme"] for job in tried].count("none") == 1


def test_a_time_limit_before_the_baseline_is_named_as_the_reason(bench: StudyBench) -> None:
    bench.clock.tick_s = 10.0
    with pytest.raises(TrialFailed, match="the time limit came before the baseline") as raised:
        bench.run(time_limit_s=1.0)
    assert "--time-limit" in (raised.value.hint or "")


def test_the_next_baseline_placement_is_tried(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, environment=flux.h200(torchao=None))
    bench.rule({"failure": "out_of_memory"}, baseline=True, placement="resident")
    bench.run()
    baselines = [job["placement"] for job in bench.jobs if job.get("baseline")]
    assert baselines == ["resident", "model_offload"]


def test_a_baseline_that_failed_is_not_tried_again_on_resuming(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, environment=flux.h200(torchao=None))
    bench.rule({"failure": "out_of_memory"}, baseline=True, placement="resident")
    interrupted_after(bench, 3)
    bench.run()
    baselines = [job["placement"] for job in bench.jobs if job.get("baseline")]
    assert baselines == ["resident", "model_offload"]


@pytest.mark.parametrize(
    "then",
    [{"slower": 1.5}, {"peak_bytes": GB}, {"layers": 9}],
    ids=["slower", "larger", "other layers"],
)
def test_what_does_not_repeat_is_not_published(bench: StudyBench, then: dict[str, object]) -> None:
    bench.rule(then, rung="replay", scope="regional")
    outcome = bench.run()
    scopes = {
        bench.registry.record(name).record.plan.pipeline.component("transformer").compilation.scope
        for name in outcome.published
    }
    assert scopes
    assert "regional" not in scopes
    failures = [trial.failure.message for trial in bench.trials if trial.failure is not None]
    assert failures
    assert all(text.startswith("not reproduced: ") for text in failures)


def test_a_slow_replay_is_tried_again_in_the_same_run(bench: StudyBench) -> None:
    bench.rule({"slower": 1.5}, first=1, rung="replay")
    outcome = bench.run()
    assert outcome.best is not None
    assert any("replayed once more, not reproduced: latency" in note for note in outcome.notes)
    (replayed, *_) = [trial for trial in bench.trials if trial.rung == "replay"]
    assert replayed.measurement is not None
    assert replayed.plan == outcome.best.plan


def test_what_is_slower_by_functions_compiled_ahead_is_published_without_them(
    bench: StudyBench,
) -> None:
    library = CodePart("library", f"ab/{'b' * 50}.main.so", b"of a graph")
    function = CodePart("function", f"function/{'c' * 64}", b"of a block")
    compiled = pack(CompiledCode((library, function), "d" * 64))
    bench.rule({"compiled": compiled.hex()}, rung="pipeline")
    bench.rule({"slower": 1.5}, rung="replay", functions=True)
    outcome = bench.run()
    assert outcome.best is not None
    assert any("nothing compiled ahead of time is published" in note for note in outcome.notes)
    (artifact,) = outcome.best.artifacts
    code = unpack(bench.registry.read_artifact(artifact))
    assert code.parts == (library,)


def test_functions_that_a_replay_missed_are_not_published(bench: StudyBench) -> None:
    library = CodePart("library", f"ab/{'b' * 50}.main.so", b"of a graph")
    function = CodePart("function", f"function/{'c' * 64}", b"of a block")
    compiled = pack(CompiledCode((library, function), "d" * 64))
    bench.rule({"compiled": compiled.hex()}, rung="pipeline")
    missed = {"rung": "ahead_of_time", "function_misses": 1}
    bench.rule({"warm_start": missed}, rung="replay", functions=True)
    outcome = bench.run()
    assert outcome.best is not None
    (artifact,) = outcome.best.artifacts
    assert unpack(bench.registry.read_artifact(artifact)).parts == (library,)


def replays_of(bench: StudyBench, kind: str) -> list[str]:
    """Plans of replays that failed so, in order."""
    replays = [trial for trial in bench.trials if trial.rung == "replay"]
    return [t.plan.digest for t in replays if t.failure is not None and t.failure.kind == kind]


def test_replays_that_failed_by_their_times_are_tried_again_on_resuming_once(
    bench: StudyBench,
) -> None:
    bench.rule({"slower": 1.5}, rung="replay")
    assert not bench.run().published
    assert bench.study().status == "interrupted"
    missed = replays_of(bench, "timing")
    assert missed
    assert not bench.run().published
    assert sorted(replays_of(bench, "timing")) == sorted(2 * missed)
    assert bench.study().status == "finished"


def test_a_busy_machine_costs_no_proof_once_it_is_calm(bench: StudyBench) -> None:
    bench.rule({"slower": 1.5}, rung="replay")
    assert not bench.run().published
    missed = replays_of(bench, "timing")
    bench.rules.clear()
    best = bench.run().best
    assert best is not None
    assert best.plan.digest in missed
    assert bench.study().status == "finished"


def test_a_replay_that_failed_of_substance_is_not_tried_again(bench: StudyBench) -> None:
    bench.rule({"layers": 9, "slower": 1.5}, rung="replay")
    first = bench.run()
    assert not first.published
    assert not replays_of(bench, "timing")
    assert bench.study().status == "finished"


@pytest.mark.parametrize("used", [{"graph_hits": 0}, {"graph_hits": 4, "library_misses": 9}])
def test_a_cache_that_saves_nothing_is_dropped_with_a_note(
    bench: StudyBench, used: dict[str, int]
) -> None:
    """Graphs alone save nothing where every library that they call is compiled anew."""
    bench.rule({"warm_start": used}, **REPLAYED_FROM_CACHE)
    outcome = bench.run()
    assert outcome.best is not None
    assert outcome.best.artifacts == ()
    measured = outcome.best.measurement
    assert (measured.cold_first_image_s, measured.warm_first_image_s) == (0.5, None)
    assert measured.warm_start is None
    name = describe(outcome.best.plan, bench.inventory)
    assert f"{name}: its compile cache saves nothing and is not published" in outcome.notes
    assert [event.text for event in bench.heard(Note)] == list(outcome.notes)


def test_a_cache_that_lacks_something_is_published_with_a_note(bench: StudyBench) -> None:
    bench.rule({"warm_start": {"graph_misses": 1, "library_hits": 8}}, **REPLAYED_FROM_CACHE)
    outcome = bench.run()
    assert outcome.best is not None
    assert [item.kind for item in outcome.best.artifacts] == ["compile_cache"]
    used = outcome.best.measurement.warm_start
    assert used == WarmStart(rung="compile_cache", graph_hits=4, graph_misses=1, library_hits=8)
    name = describe(outcome.best.plan, bench.inventory)
    assert f"{name}: 1 graphs and 0 libraries were not in its compile cache" in outcome.notes


def test_a_cache_that_crashes_the_start_is_done_without(bench: StudyBench) -> None:
    bench.rule({"signal": "SIGSEGV"}, **REPLAYED_FROM_CACHE)
    outcome = bench.run()
    assert outcome.best is not None
    assert outcome.best.artifacts == ()
    assert outcome.best.measurement.cold_first_image_s == 1.5
    assert "broke the start (crashed)" in outcome.notes[0]


def test_a_cold_start_that_fails_is_noted(bench: StudyBench) -> None:
    bench.rule({"failure": "error"}, rung="replay", artifact=False)
    outcome = bench.run()
    assert outcome.best is not None
    assert outcome.best.measurement.cold_first_image_s is None
    assert "no cold start timed: as the table says" in outcome.notes[0]


def test_a_refused_picture_is_not_published(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, environment=flux.cpu())
    for scheme in ("int8_dynamic", "int8_weight_only", "float8_weight_only"):
        bench.rule({"sqnr_db": 5.0}, scheme=scheme)
    outcome = bench.run()
    refused = [trial for trial in bench.trials if trial.quality and not trial.quality.passed]
    assert refused
    assert outcome.best is not None
    assert outcome.best.plan.pipeline.component("transformer").quantization.scheme == "none"


def test_several_shapes_are_one_plan(tmp_path: Path) -> None:
    shapes = (SQUARE, Shape(height=64, width=128))
    bench = StudyBench(tmp_path, shapes=shapes)
    best = bench.run().best
    assert best is not None
    assert [item.shape for item in best.measurement.shapes] == list(best.workload.shapes)
    assert len(best.workload.shapes) == 2


def test_the_time_limit_ends_the_search(tmp_path: Path) -> None:
    hurried = StudyBench(tmp_path, clock=ManualClock(tick_s=40.0))
    limit_s = 2 * (TYPICAL_S["pipeline"] + TYPICAL_S["replay"])
    outcome = hurried.run(time_limit_s=limit_s)
    assert outcome.untried
    assert len(hurried.trials) < 4


def test_a_limit_that_came_before_any_proof_leaves_a_study_to_go_on_with(tmp_path: Path) -> None:
    hurried = StudyBench(tmp_path, clock=ManualClock(tick_s=40.0))
    first = hurried.run(time_limit_s=2 * (TYPICAL_S["pipeline"] + TYPICAL_S["replay"]))
    assert not first.published
    assert hurried.study().status == "interrupted"
    assert any("goes on from them" in note for note in first.notes)
    kept = hurried.trials

    second = hurried.run()
    assert second.study_id == first.study_id
    assert second.published
    assert hurried.trials[: len(kept)] == kept
    assert hurried.study().status == "finished"


def test_without_time_no_baseline_is_tried(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, clock=ManualClock(tick_s=10.0))
    with pytest.raises(TrialFailed, match="no time was left"):
        bench.run(time_limit_s=5.0)
    assert [job["kind"] for job in bench.jobs] == ["inventory"]


def interrupted_after(bench: StudyBench, finished: int) -> None:
    left = [finished]

    def stop(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(stop)


@pytest.mark.parametrize("finished", [1, 4, 6])
def test_an_interrupted_study_goes_on(bench: StudyBench, finished: int) -> None:
    interrupted_after(bench, finished)
    assert bench.study().status == "interrupted"
    assert bench.registry.history() == ()
    kept = keys_of(bench.trials)
    assert len(kept) == finished
    before = bench.trial_jobs()
    outcome = bench.run()
    again = bench.trial_jobs() - before
    assert not set(kept) & set(again), "a finished trial ran again"
    assert len(set(keys_of(bench.trials))) == len(bench.trials)
    assert bench.study().status == "finished"
    assert bench.heard(StudyStarted)[-1] == StudyStarted(bench.study().id, finished)
    assert outcome.best is not None
    assert bench.leftovers() == []


def test_interrupted_or_not_the_winner_is_the_same(tmp_path: Path) -> None:
    """Replays that ended before the interruption keep their compile caches too. Which other
    finalists are tried depends on how long trials really took, so they may differ."""
    (tmp_path / "whole").mkdir()
    whole = StudyBench(tmp_path / "whole")
    published = whole.run().published
    (tmp_path / "broken").mkdir()
    broken = StudyBench(tmp_path / "broken")
    interrupted_after(broken, len(whole.trials) - 1)
    assert any(trial.rung == "replay" for trial in broken.trials)
    resumed = broken.run().published
    assert records(broken, resumed)[0] == records(whole, published)[0]
    assert all(artifacts for _, artifacts in records(broken, resumed))


def records(bench: StudyBench, ids: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    found = [bench.registry.record(name).record for name in ids]
    return [(r.plan.digest, tuple(item.sha256 for item in r.artifacts)) for r in found]


def test_a_dropped_cache_stays_dropped_on_resuming(bench: StudyBench) -> None:
    bench.rule({"warm_start": {"graph_hits": 0}}, **REPLAYED_FROM_CACHE)

    def stop(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished) and event.trial.rung == "replay":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(stop)
    bench.rules.clear()
    (replayed,) = [trial for trial in bench.trials if trial.rung == "replay"]
    found = dict(records(bench, bench.run().published))
    assert found[replayed.plan.digest] == ()


def test_a_lost_reference_is_made_again(bench: StudyBench) -> None:
    interrupted_after(bench, 2)
    for path in bench.leftovers():
        path.unlink()
        path.parent.rmdir()
    assert bench.run().best is not None
    assert sum(bool(job.get("baseline")) for job in bench.jobs) == 2


def test_foreign_load_marks_the_figures(bench: StudyBench) -> None:
    bench.nvml.used = [2 * 2**30]
    best = bench.run(share=True).best
    assert best is not None
    assert best.measurement.contaminated == (
        "others held 2.0 GiB of the device before the trial started"
    )


def test_starts_of_workers_are_hidden_behind_trials_and_counted(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, ahead=True, import_s=100.0)
    outcome = bench.run()
    first, *others = bench.trials
    assert all(trial.hidden_s > 0.0 for trial in (first, *others)), "the inventory came before"
    assert outcome.hidden_s == sum(trial.hidden_s for trial in bench.trials)
    summary = bench.study().summary
    assert summary is not None
    assert summary["start_up_hidden_s"] == outcome.hidden_s
    assert [event.trial.hidden_s for event in bench.heard(TrialFinished)] == [
        trial.hidden_s for trial in bench.trials
    ]
    assert bench.leftovers() == []


def test_an_interrupted_study_leaves_no_waiting_worker(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, ahead=True)
    before = our_children()
    interrupted_after(bench, 3)
    assert our_children() <= before
    assert [path for path in bench.leftovers() if "trial-" in str(path)] == []
    assert bench.run().best is not None


class Passing(FakeNvml):
    """Others hold 2 GiB for as many looks at the device as are `left`."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    def used_bytes(self, uuid: str) -> int:
        self.left -= 1
        return 2 * 2**30 if self.left >= 0 else super().used_bytes(uuid)


def others_come_with(bench: StudyBench, replays: int) -> Listener:
    """They hold memory as each of the first so many replays begins."""
    nvml = bench.nvml
    assert isinstance(nvml, Passing)
    left = [replays]

    def hear(event: StudyEvent) -> None:
        if isinstance(event, TrialStarted) and event.rung == "replay" and left[0]:
            left[0] -= 1
            nvml.left = 1

    return hear


def test_a_finalist_measured_beside_others_is_measured_again(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, nvml=Passing())
    outcome = bench.run(others_come_with(bench, 1))
    assert outcome.best is not None
    assert outcome.best.measurement.contaminated is None
    assert any("replayed once more, others held 2.0 GiB" in note for note in outcome.notes)


def test_without_time_its_figures_are_published_as_what_they_are(tmp_path: Path) -> None:
    """The time ran out in the replay."""
    bench = StudyBench(tmp_path, nvml=Passing())
    come = others_come_with(bench, 1)
    rungs = ["inventory"]

    def hear(event: StudyEvent) -> None:
        come(event)
        if isinstance(event, TrialStarted):
            rungs.append(str(event.rung))
        if isinstance(event, MemorySample) and rungs[-1] == "replay":
            bench.clock.elapsed_s = 1e6

    outcome = bench.run(hear, time_limit_s=1e6)
    assert outcome.best is not None
    assert "others held 2.0 GiB" in (outcome.best.measurement.contaminated or "")
    assert any("no time to replay it once more, others" in note for note in outcome.notes)


@pytest.fixture
def timed_bench(bench: StudyBench) -> StudyBench:
    """A model that takes long to load, so that timing its blocks pays; torchao is there."""
    bench.environment = flux.cpu()
    bench.rule({"load_s": 90.0}, baseline=True)
    return bench


def test_timed_blocks_predict_and_mix(timed_bench: StudyBench) -> None:
    """The worker's blocks add up to its steps, and a mixture of schemes is its best."""
    outcome = timed_bench.run()
    assert [job["kind"] for job in timed_bench.jobs].count("time_blocks") == 2
    stages = [event.stage for event in timed_bench.heard(StageStarted)]
    assert stages == ["inventory", "space", "baseline", "blocks", "blocks", "search", "publish"]
    baseline, *tried = timed_bench.trials
    assert baseline.estimate is not None
    assert baseline.estimate.source == "roofline"
    for trial in tried:
        assert trial.estimate is not None
        assert trial.estimate.source == "blocks"
        if trial.measurement is not None:
            assert trial.estimate.step_ms == pytest.approx(trial.measurement.step_ms, rel=0.35)
    best = outcome.best
    assert best is not None
    chosen = best.plan.pipeline.component("transformer").quantization
    assert chosen.scheme == "mixed"
    assert set(chosen.layers.values()) == {"int8_dynamic"}
    assert not any("add_" in pattern or "context" in pattern for pattern in chosen.layers)


def test_the_summary_says_what_decided_each_group_of_layers(timed_bench: StudyBench) -> None:
    timed_bench.run()
    summary = timed_bench.study().summary
    assert summary is not None
    rows = {tuple(row["layers"]): row for row in summary["autoquant"]}
    kept = rows[("transformer_blocks.*.attn.add_q_proj",)]
    assert kept["scheme"] == "none"
    assert kept["ms"]["none"] < kept["ms"]["int8_dynamic"]
    assert rows[("transformer_blocks.*.attn.to_q",)]["scheme"] == "int8_dynamic"


def test_what_was_timed_once_serves_every_study_of_the_machine(timed_bench: StudyBench) -> None:
    timed_bench.run()
    known = timed_bench.registry.all_timings()
    assert {stored.timing.key.kind for stored in known} == {"block", "linear"}
    second = timed_bench.run(objective="throughput")
    assert [job["kind"] for job in timed_bench.jobs].count("time_blocks") == 2
    assert second.best is not None
    assert second.best.estimate.source == "blocks"


def test_a_mixture_that_was_tried_stays_a_candidate(
    timed_bench: StudyBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trials teach may choose another when the study goes on."""
    interrupted_after(timed_bench, 4)
    tried = {t.plan.pipeline.component("transformer").quantization for t in timed_bench.trials}
    mixtures = {item for item in tried if item.scheme == "mixed"}
    assert len(mixtures) == 1
    monkeypatch.setattr(Planning, "mixture", lambda *_: None)
    outcome = timed_bench.run()
    assert outcome.best is not None
    assert {outcome.best.plan.pipeline.component("transformer").quantization} == mixtures


def test_a_search_of_everything_times_no_blocks(timed_bench: StudyBench) -> None:
    timed_bench.run(exhaustive=True, time_limit_s=40.0)
    assert "time_blocks" not in {job["kind"] for job in timed_bench.jobs}


def test_a_killed_timing_job_costs_its_predictions_only(timed_bench: StudyBench) -> None:
    timed_bench.rule({"timed": 3}, kind="time_blocks")
    outcome = timed_bench.run()
    assert outcome.best is not None
    assert any("timing of blocks ended early: crashed" in note for note in outcome.notes)
    sources = {trial.estimate.source for trial in timed_bench.trials if trial.estimate}
    assert sources == {"roofline", "roofline+trials"}
    assert timed_bench.leftovers() == []


def workers_of_this_test() -> list[int]:
    """Other tests may have left servers of their own among our children."""
    children = psutil.Process().children()
    return [child.pid for child in children if str(SCRIPT) in child.cmdline()]


def test_a_run_that_gave_way_goes_on_where_it_was(bench: StudyBench) -> None:
    """Somebody opens the GPU in the middle of a trial: the trial is none, the others stand."""
    bench.rule({"takes_s": 60.0}, kind="trial", rung="denoiser")
    bench.yields = True
    with subprocess.Popen(["sleep", "60"]) as stranger:
        bench.nvml.processes = lambda: (
            [stranger.pid, *workers_of_this_test()] if len(bench.trial_jobs()) > 1 else []
        )
        with pytest.raises(DeviceBusy, match=f"process {stranger.pid} came"):
            bench.run()
        stranger.kill()
    stood = keys_of(bench.trials)
    assert len(stood) == 1
    bench.rules.clear()
    bench.nvml.processes = tuple
    before = bench.trial_jobs()
    assert bench.run().published
    assert not set(stood) & set(bench.trial_jobs() - before)


def test_the_best_of_an_earlier_search_is_tried_before_all_others(bench: StudyBench) -> None:
    """Also where today's survey would not offer it, but not where a rule forbids it."""
    planning = Planning(bench.request(), bench.inventory, bench.environment)
    found = planning.survey()
    fast = found.kept[0].plan
    odd = fast.model_copy(update={"process": fast.process.model_copy(update={"threads": 3})})
    forbidden = next(i.plan for i in found.dropped if planning.rules.violations(i.plan))
    known = tuple(Known(plan, 50.0) for plan in (forbidden, odd))
    assert bench.run(first=known).published
    (_, baseline), second, *_ = keys_of(bench.trials)
    assert baseline == planning.baselines()[0].plan.digest
    assert second == ("pipeline", odd.digest)
    assert all(digest != forbidden.digest for _, digest in keys_of(bench.trials))
