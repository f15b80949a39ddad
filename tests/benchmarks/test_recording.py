"""Recording with real worker processes that answer from a table instead of holding torch."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sampling
from benchmarks.block_timings import Foreseen, read_timings, step_errors
from benchmarks.model_error import cases_of, left_out
from benchmarks.record_trials import parse_restriction, parse_shard
from benchmarks.recorded import RecordedTrial, TrialFile, read_all
from benchmarks.recorder import Recorder
from benchmarks.recording import Asked, Place, recordings
from benchmarks.replay import landscapes
from registry.errors import InvalidInput
from tests.tuner.study_bench import GB, ManualClock, StudyBench
from tuner.choices import Restriction
from tuner.clock import TimeLimit
from tuner.models import resolve_model


class Desk:
    """A machine, and what is recorded on it."""

    def __init__(self, root: Path) -> None:
        self.bench = StudyBench(root)
        self.out = root / "trials.jsonl"

    def asked(self, **changes: Any) -> Asked:
        given: dict[str, Any] = {
            "model": "tiny-flux",
            "budget_bytes": 2 * GB,
            "host_budget_bytes": None,
            "resolutions": ((64, 64),),
            "batch_sizes": (1,),
            "weights": "random",
            "revision": None,
            "gpu": None,
            "out": self.out,
            "rung": "denoiser",
            "steps": None,
            "limit": 6,
            "slow_every": 12,
            "seed": 0,
            "part": (0, 1),
            "time_limit_s": None,
            "trial_limit_s": 60.0,
            "restrict": Restriction(),
            "dominated": False,
            "no_baseline": False,
            "share": False,
            "again_if_contaminated": False,
            "only_list": False,
        }
        return Asked(**given | changes)

    def record(self, clock: ManualClock | None = None, **changes: Any) -> int:
        asked, clock = self.asked(**changes), clock or ManualClock()
        self.bench.write_table()
        with closing(self.bench.runner()) as runner:
            limit = TimeLimit(clock, asked.time_limit_s)
            folder = self.bench.root / "work"
            place = Place(
                resolve_model("tiny-flux"), self.bench.detection, runner, folder, limit, clock
            )
            folder.mkdir(exist_ok=True)
            return Recorder(asked, place).run(recordings(asked, place))

    @property
    def kept(self) -> tuple[RecordedTrial, ...]:
        return read_all([self.out])

    @property
    def ran(self) -> int:
        return sum(self.bench.trial_jobs().values())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_recording_is_the_baseline_and_trials_with_frozen_estimates(desk: Desk) -> None:
    assert desk.record() == 0
    first, *others = desk.kept
    assert (first.is_baseline, first.trial.rung) == (True, "pipeline")
    assert len(others) == 6
    for item in others:
        assert item.trial.estimate is not None
        assert item.trial.estimate.source == "roofline+trials"
        assert item.roofline.source == "roofline"
        assert item.trial.quality is not None
    assert len({item.key for item in desk.kept}) == 7


def test_what_is_in_the_file_is_not_run_again(desk: Desk) -> None:
    desk.record(limit=4)
    before = desk.kept
    assert desk.record(limit=6) == 0
    assert desk.kept[: len(before)] == before
    assert len(desk.kept) == len(before) + 2
    # Its pictures are kept nowhere, so the baseline runs each time.
    assert desk.ran == 1 + 4 + 1 + 2


def test_without_a_baseline_predictions_are_bare_and_pictures_not_judged(desk: Desk) -> None:
    desk.record(no_baseline=True, limit=3)
    assert len(desk.kept) == 3
    for item in desk.kept:
        assert item.trial.estimate == item.roofline
        assert item.trial.quality is None
        assert item.trial.measurement is not None


def test_a_failure_is_kept_without_its_last_words(desk: Desk) -> None:
    desk.bench.rule({"signal": "SIGSEGV", "prints": "/somewhere/secret"}, scope="regional")
    desk.record()
    failed = [item for item in desk.kept if item.trial.failure is not None]
    assert failed
    for item in failed:
        assert item.trial.failure is not None
        assert item.trial.failure.kind == "crashed"
        assert "SIGSEGV" in item.trial.failure.message
        assert "\n" not in item.trial.failure.message
        assert "secret" not in item.model_dump_json()


def test_the_time_limit_leaves_the_rest_for_another_time(desk: Desk) -> None:
    # Each look at the clock takes five of its seconds.
    desk.record(ManualClock(tick_s=5.0), time_limit_s=60.0)
    assert 0 < len(desk.kept) < 7
    desk.record()
    assert len(desk.kept) == 7


def test_a_trial_that_the_end_of_the_recording_cut_off_is_no_failure(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "START_S", 0.0)
    desk.record(limit=1)
    desk.bench.rule({"takes_s": 30.0}, kind="trial", rung="denoiser")
    desk.record(limit=2, time_limit_s=1.5)
    assert [item.trial.failure for item in desk.kept] == [None, None]
    desk.record(limit=2, trial_limit_s=0.5)
    (failure,) = [item.trial.failure for item in desk.kept if item.trial.failure]
    assert failure.kind == "timeout"


def test_sizes_and_batches_take_turns(desk: Desk) -> None:
    desk.bench.shapes = tuple(
        item
        for item in (
            desk.bench.shapes[0],
            desk.bench.shapes[0].model_copy(update={"batch_size": 4}),
        )
    )
    desk.record(batch_sizes=(1, 4), no_baseline=True, rung="pipeline", steps=4, limit=2)
    assert [item.workload.label for item in desk.kept] == ["64x64", "64x64 batch 4"] * 2
    assert {item.steps for item in desk.kept} == {4}


def test_blocks_are_timed_into_a_file_and_predict_the_plans_again(
    desk: Desk, tmp_path: Path
) -> None:
    blocks = tmp_path / "blocks.json"
    desk.record(blocks=blocks, limit=16)
    (landscape,) = landscapes(desk.kept)
    foreseen = Foreseen(landscape, read_timings([blocks]))
    candidates = foreseen.candidates()
    assert candidates is not None
    assert "blocks" in {item.estimate.source for item in candidates}
    assert foreseen.rung_s() > 0
    # The worker's blocks add up to the steps of its trials.
    errors = step_errors(landscape.by_plan.values(), candidates)
    frozen = step_errors(landscape.by_plan.values(), landscape.candidates)
    assert min(errors) < 0.01
    assert sum(errors) < sum(frozen)
    assert Foreseen(landscape, {}).candidates() is None


def test_a_list_runs_no_trial(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.record(only_list=True) == 0
    assert desk.ran == 0
    assert "6 trials" in capsys.readouterr().out
    assert not desk.out.exists()


def test_a_line_that_was_cut_off_is_dropped_by_the_next_writer(desk: Desk) -> None:
    desk.record(limit=2)
    whole = desk.out.read_bytes()
    desk.out.write_bytes(whole[:-10])
    assert len(desk.kept) == 2
    desk.record(limit=2)
    assert len(read_all([desk.out])) == 3
    assert desk.out.read_bytes().endswith(b"\n")


def test_a_damaged_line_is_named(desk: Desk) -> None:
    desk.record(limit=2)
    lines = desk.out.read_bytes().split(b"\n")
    desk.out.write_bytes(b"\n".join([lines[0], b'{"format":2}', *lines[2:]]))
    with pytest.raises(InvalidInput, match="line 2 is not a recorded trial"):
        read_all([desk.out])


def test_shards_append_to_one_file(desk: Desk) -> None:
    for part in ((0, 2), (1, 2)):
        desk.record(part=part, no_baseline=True)
    assert len({item.key for item in desk.kept}) == len(desk.kept) == 6


def test_shards_agree_though_their_baselines_differ(desk: Desk) -> None:
    """One card is slower than the other: what it predicts must not decide who does what."""
    desk.record(part=(0, 2), limit=16)
    desk.bench.rule({"slower": 1.7}, baseline=True)
    desk.record(part=(1, 2), limit=16)
    tried = [item.trial.plan.digest for item in desk.kept if not item.is_baseline]
    assert len(set(tried)) == len(tried)
    desk.record(limit=16)
    assert len(desk.kept) == len(tried) + 1


def test_errors_of_predictions_are_told_from_the_file(desk: Desk) -> None:
    desk.bench.rule({"failure": "unsupported"}, scope="regional")
    desk.record(rung="pipeline")
    cases = cases_of(desk.kept)
    assert all(case.error("peak") is not None for case in cases)
    assert left_out(desk.kept)["failed (unsupported)"] == len(desk.kept) - len(cases)
    bare = cases_of(desk.kept, roofline=True)
    assert {case.estimate.source for case in bare} == {"roofline"}


def test_two_files_are_read_as_one(desk: Desk, tmp_path: Path) -> None:
    desk.record(limit=2)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(desk.out.read_bytes())
    assert read_all([desk.out, copy]) == desk.kept + desk.kept
    with pytest.raises(InvalidInput, match="is not a file of recorded trials"):
        read_all([tmp_path / "none.jsonl"])
    assert TrialFile(tmp_path / "none.jsonl").keys() == frozenset()


@pytest.mark.parametrize("text", ["4/4", "x/2", "1", "-1/2"])
def test_a_bad_shard_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a shard"):
        parse_shard(text)


def test_restrictions() -> None:
    assert parse_restriction("scopes=none,regional") == ("scopes", frozenset({"none", "regional"}))
    assert parse_restriction("fuse_qkv=false") == ("fuse_qkv", False)
    assert parse_shard("2/4") == (2, 4)
    for bad in ("colour=red", "scopes", "scopes=", "fuse_qkv=perhaps"):
        with pytest.raises(InvalidInput):
            parse_restriction(bad)
