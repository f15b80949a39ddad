"""Published plans run again, by real processes that answer from a table."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.errors import InvalidInput, TrialFailed
from registry.records import StoredRecord
from tests.tuner.fake_nvml import H100
from tests.tuner.study_bench import SMALL, StudyBench
from tuner.locks import DeviceLock
from tuner.models import resolve_model
from tuner.report.verifications import as_data
from tuner.verifying import Verified, refuse_another_device, request_of, verify_record
from tuner.workplace import Workplace

MB = 10**6
MODEL = resolve_model("tiny-flux")


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder, its answer published; to be copied."""
    root = tmp_path_factory.mktemp("answered")
    StudyBench(root).run()
    return root


@pytest.fixture
def bench(answered: Path, tmp_path: Path) -> StudyBench:
    return StudyBench(Path(shutil.copytree(answered, tmp_path / "bench")))


@pytest.fixture
def best(bench: StudyBench) -> StoredRecord:
    return min(bench.registry.candidates(), key=lambda item: item.record.measurement.step_ms)


def verify(bench: StudyBench, stored: StoredRecord, **changes: Any) -> Verified:
    bench.write_table()
    lock = DeviceLock(H100.uuid, bench.settings.locks_dir)
    with lock, closing(bench.runner(lock)) as runner:
        detection = replace(bench.detection, **changes)
        place = Workplace(bench.settings, detection, bench.registry, runner, bench.clock)
        return verify_record(place, stored, MODEL, bench.events.append, share=False)


def problems_of(found: Verified) -> tuple[str, ...]:
    assert found.verification is not None
    return found.verification.problems


def test_a_plan_that_does_what_it_did_holds(bench: StudyBench, best: StoredRecord) -> None:
    before = len(bench.jobs)
    found = verify(bench, best)
    assert problems_of(found) == ()
    assert found.now is not None
    assert found.quality is not None
    assert found.quality.passed
    baseline, again = (job for job in bench.jobs[before:] if job["kind"] == "trial")
    assert (baseline["rung"], baseline["baseline"]) == ("pipeline", True)
    assert again["rung"] == "replay"
    assert again["artifact"] is bool(best.record.artifacts)
    kept = bench.registry.record(best.record.id).verification
    assert kept == found.verification
    study = bench.registry.study(found.study)
    assert study.summary is not None
    assert (study.status, study.summary["verdict"]) == ("finished", "holds")
    assert [trial.rung for trial in bench.registry.trials(study.id)] == ["pipeline", "replay"]
    assert bench.leftovers() == []


def test_its_own_prompts_seeds_and_steps_are_asked(best: StoredRecord) -> None:
    request = request_of(best.record, MODEL, share=False)
    pairs = {(item.prompt, item.seed) for item in best.record.quality.scores}
    assert set(zip(request.prompts, request.seeds, strict=True)) == pairs
    assert request.steps == best.record.measurement.shapes[0].steps
    assert request.budget_bytes == best.record.budget_bytes


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"slower": 1.5}, "latency"),
        ({"peak_bytes": 900 * MB}, "peak memory 900000000 bytes"),
        ({"layers": 3}, "layers of transformer resolved to"),
        ({"sqnr_db": 2.0}, "sqnr_db 2 at worst, under 15"),
        ({"failure": "error"}, "it does not run: as the table says"),
    ],
    ids=["slower", "larger", "other layers", "another picture", "fails"],
)
def test_a_plan_that_drifted_is_marked(
    bench: StudyBench, best: StoredRecord, then: dict[str, Any], said: str
) -> None:
    bench.rule(then, rung="replay")
    found = verify(bench, best)
    assert any(said in problem for problem in problems_of(found)), problems_of(found)
    assert bench.registry.record(best.record.id).verification == found.verification
    assert as_data(found)["verdict"] == "drifted"


def test_times_alone_are_taken_twice(bench: StudyBench, best: StoredRecord) -> None:
    bench.rule({"slower": 1.5}, rung="replay", first=1 + replays(bench))
    found = verify(bench, best)
    assert problems_of(found) == ()
    assert any("run once more" in note for note in found.notes)


def replays(bench: StudyBench) -> int:
    return sum(count for (rung, _), count in bench.trial_jobs().items() if rung == "replay")


def test_another_environment_is_told_and_not_marked(bench: StudyBench, best: StoredRecord) -> None:
    runtime = SMALL.runtime.model_copy(update={"accelerate": "99.0"})
    bench.environment = SMALL.model_copy(update={"runtime": runtime})
    bench.rule({"slower": 1.5}, rung="replay")
    found = verify(bench, best)
    assert found.changes == (f"accelerate: 99.0 here, {SMALL.runtime.accelerate} when proved",)
    assert problems_of(found)
    assert bench.registry.record(best.record.id).verification is None
    assert not any(job["artifact"] for job in bench.jobs[-2:])


def test_without_a_baseline_nothing_is_said(bench: StudyBench, best: StoredRecord) -> None:
    bench.rule({"failure": "error"}, baseline=True)
    with pytest.raises(TrialFailed, match="the baseline that it was held against does not run"):
        verify(bench, best)
    assert bench.registry.record(best.record.id).verification is None
    verified = (row for row in bench.registry.studies() if "command" in row.request)
    assert [row.status for row in verified] == ["failed"]
    assert bench.leftovers() == []


def test_another_model_or_device_is_refused(bench: StudyBench, best: StoredRecord) -> None:
    key = best.record.key.model_copy(update={"weights": "c" * 64})
    other = best.model_copy(update={"record": best.record.model_copy(update={"key": key})})
    with pytest.raises(InvalidInput, match="is not the model that record"):
        verify(bench, other)
    hardware = SMALL.hardware.model_copy(update={"cpu_model": "another"})
    elsewhere = SMALL.model_copy(update={"hardware": hardware})
    with pytest.raises(InvalidInput, match="was proved on"):
        refuse_another_device(best.record, elsewhere)
