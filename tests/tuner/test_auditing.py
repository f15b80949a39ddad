"""Studies with audits, start to end, with real processes that answer from a table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from registry.record import Measurement, PeakMemory, ShapeMeasurement, Trial
from tests.tuner import flux
from tests.tuner.study_bench import GB, ManualClock, StudyBench, keys_of
from tuner.audit import AuditReport, StratumCount
from tuner.cli.main import run
from tuner.events import StageStarted, StudyEvent, TrialFinished
from tuner.planning import Planning
from tuner.report.outcomes import as_data, parts
from tuner.request import StudyOutcome
from tuner.suspects import suspects

MB = 10**6
TIGHT = 800 * 10**6
"""Of 16 candidates on a GPU some are predicted not to fit, some to be dominated."""


@pytest.fixture
def bench(tmp_path: Path) -> StudyBench:
    return StudyBench(tmp_path)


def report_of(outcome: StudyOutcome) -> AuditReport:
    assert outcome.audit is not None
    return outcome.audit


def text_of(outcome: StudyOutcome) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as capture:
        for part in parts(outcome):
            console.print(part)
    return capture.get()


def test_a_study_without_an_audit_tries_nothing_that_it_dropped(bench: StudyBench) -> None:
    outcome = bench.run()
    assert outcome.audit is None
    assert all(trial.dropped is None for trial in bench.trials)
    assert "audit" not in (bench.study().summary or {})


def test_dropped_candidates_are_tried_after_the_answer_is_out(bench: StudyBench) -> None:
    published: list[int] = []

    def look(event: StudyEvent) -> None:
        if isinstance(event, StageStarted) and event.stage == "audit":
            published.append(len(bench.registry.history()))

    outcome = bench.run(look, audit=6)
    assert published == [len(outcome.published)]
    assert [event.stage for event in bench.heard(StageStarted)][-2:] == ["publish", "audit"]
    report = report_of(outcome)
    assert (report.asked, report.tried, report.complete) == (6, 6, True)
    audited = [trial for trial in bench.trials if trial.dropped is not None]
    assert len({trial.plan for trial in audited}) == 6
    assert {(trial.dropped or "").partition(":")[0] for trial in audited} == {"useless", "outbid"}
    own = {trial.plan for trial in bench.trials if trial.dropped is None}
    assert not own & {trial.plan for trial in audited}
    assert bench.study().status == "finished"
    assert bench.leftovers() == []


def test_the_answer_is_the_same_with_an_audit_and_without(tmp_path: Path) -> None:
    best = []
    for audit in (0, 5):
        (tmp_path / str(audit)).mkdir()
        outcome = StudyBench(tmp_path / str(audit)).run(audit=audit)
        assert outcome.best is not None
        best.append(outcome.best.plan)
    assert best[0] == best[1]


def test_drops_by_prediction_are_told_apart(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, environment=flux.h200(torchao=None))
    report = report_of(bench.run(audit=8, budget_bytes=TIGHT))
    assert {"useless", "dominated", "outbid"} <= set(report.strata)
    assert sum(item.tried for item in report.strata.values()) == 8
    assert all(item.tried <= item.dropped for item in report.strata.values())


@pytest.fixture
def tight(tmp_path: Path) -> StudyBench:
    """A GPU on which the baseline needs what was predicted, 640 MB, so that every compiled plan is
    predicted to need some 100 MB more than the 660 MB given."""
    bench = StudyBench(tmp_path, environment=flux.h200(torchao=None))
    bench.rule({"peak_bytes": 640 * MB}, scope="none")
    return bench


def compiled(report: AuditReport) -> StratumCount:
    return report.strata["memory"]


def test_plans_that_fit_against_the_prediction_and_win_are_false_drops(tight: StudyBench) -> None:
    tight.rule({"peak_bytes": 600 * MB}, scope="regional")
    tight.rule({"peak_bytes": 600 * MB}, scope="whole")
    outcome = tight.run(audit=9, budget_bytes=660 * MB)
    assert outcome.best is not None
    assert outcome.best.plan.pipeline.component("transformer").compilation.scope == "none"
    report = report_of(outcome)
    found = compiled(report)
    assert found.tried == found.fitted == found.faster > 0
    assert len(report.false_drops) == found.faster
    for item in report.false_drops:
        assert (item.verdict, item.stratum) == ("faster", "memory")
        assert "needs about" in item.reason
        assert item.peak_vram_bytes == 600 * MB
        assert item.score_s < (outcome.best.measurement.latency_s or 0.0)
    assert f"✗ {report.false_drops[0].label}" in text_of(outcome)


def test_plans_that_fit_and_are_only_smaller_are_false_drops_too(tight: StudyBench) -> None:
    for scope in ("regional", "whole"):
        tight.rule({"peak_bytes": 300 * MB, "slower": 4.0}, scope=scope)
    report = report_of(tight.run(audit=9, budget_bytes=660 * MB))
    assert {item.verdict for item in report.false_drops} == {"smaller"}
    assert compiled(report).smaller == compiled(report).tried > 0


@pytest.mark.parametrize(
    "then", [{"peak_bytes": 700 * MB}, {"failure": "out_of_memory"}, {"signal": "SIGSEGV"}], ids=str
)
def test_plans_that_do_not_fit_were_rightly_dropped(
    tight: StudyBench, then: dict[str, object]
) -> None:
    tight.rule(then, scope="regional")
    tight.rule(then, scope="whole")
    report = report_of(tight.run(audit=9, budget_bytes=660 * MB))
    assert compiled(report).tried > 0
    assert compiled(report).fitted == 0
    assert report.false_drops == ()


def test_a_plan_that_fits_and_is_slower_and_no_smaller_was_rightly_dropped(
    tight: StudyBench,
) -> None:
    for scope in ("regional", "whole"):
        tight.rule({"peak_bytes": 640 * MB, "slower": 4.0}, scope=scope)
    report = report_of(tight.run(audit=9, budget_bytes=660 * MB))
    assert compiled(report).fitted == compiled(report).tried > 0
    assert report.false_drops == ()


def test_plans_given_up_for_their_picture_are_audited_and_refused(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, environment=flux.cpu())
    for scheme in ("int8_dynamic", "int8_weight_only", "float8_weight_only"):
        bench.rule({"sqnr_db": 5.0}, scheme=scheme)
    report = report_of(bench.run(audit=9))
    assert report.strata["given_up"].tried >= 3
    assert not [item for item in report.false_drops if item.stratum == "given_up"]
    assert report.false_tries.failed > 0


def interrupted_in_audit(bench: StudyBench, after: int, **changes: Any) -> None:
    left = [after]

    def stop(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished) and event.trial.dropped is not None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(stop, **changes)


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_audit_goes_on_and_repeats_nothing(bench: StudyBench, after: int) -> None:
    interrupted_in_audit(bench, after, audit=6)
    assert bench.study().status == "interrupted"
    summary = bench.study().summary or {}
    assert summary["audit"]["complete"] is False
    before = bench.registry.history()
    jobs, kept = bench.trial_jobs(), keys_of(bench.trials)

    outcome = bench.run(audit=6)
    assert not set(kept) & set(bench.trial_jobs() - jobs), "a finished trial ran again"
    assert len(set(keys_of(bench.trials))) == len(bench.trials)
    assert report_of(outcome).complete
    assert outcome.best in [item.record for item in before]
    assert set(outcome.published) == {item.record.id for item in before}
    assert bench.registry.history() == before
    assert bench.study().status == "finished"
    assert (bench.study().summary or {})["audit"] == as_data(outcome)["audit"]
    assert bench.leftovers() == []


class KilledHere(BaseException):
    """Nothing of the study handles it, as nothing would a SIGKILL."""


def test_an_audit_that_was_killed_goes_on(bench: StudyBench) -> None:
    def die(event: StudyEvent) -> None:
        if isinstance(event, TrialFinished) and event.trial.dropped is not None:
            raise KilledHere

    with pytest.raises(KilledHere):
        bench.run(die, audit=4)
    assert bench.study().status == "interrupted"
    before = bench.registry.history()
    assert before
    jobs, kept = bench.trial_jobs(), keys_of(bench.trials)
    outcome = bench.run(audit=4)
    assert not set(kept) & set(bench.trial_jobs() - jobs), "a finished trial ran again"
    assert report_of(outcome).complete
    assert bench.registry.history() == before


def test_stopped_or_not_an_audit_finds_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        bench = StudyBench(tmp_path / name)
        if name == "broken":
            interrupted_in_audit(bench, 3, audit=6)
        bench.run(audit=6)
        audited = [trial for trial in bench.trials if trial.dropped is not None]
        found.append(len({trial.plan for trial in audited}))
    assert found == [6, 6]


def test_without_an_audit_the_same_request_ends_a_stopped_one(bench: StudyBench) -> None:
    interrupted_in_audit(bench, 1, audit=6)
    jobs, before = bench.trial_jobs(), bench.registry.history()
    outcome = bench.run()
    assert set(outcome.published) == {item.record.id for item in before}
    assert bench.trial_jobs() == jobs
    assert bench.study().status == "finished"
    assert bench.registry.history() == before


def test_an_audit_ends_at_its_own_limit(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, clock=ManualClock(tick_s=1.0))
    outcome = bench.run(audit=6, audit_limit_s=5.0)
    report = report_of(outcome)
    assert 0 < report.tried < 6
    assert not report.complete
    assert outcome.published
    assert bench.study().status == "finished"
    assert "not all of those asked for" in text_of(outcome)


def test_the_time_limit_is_for_the_answer(tmp_path: Path) -> None:
    bench = StudyBench(tmp_path, clock=ManualClock(tick_s=5.0))
    outcome = bench.run(audit=3, time_limit_s=400.0)
    assert outcome.published
    assert report_of(outcome).complete


def test_without_an_answer_there_is_no_audit(bench: StudyBench) -> None:
    bench.rule({"failure": "error"}, rung="replay")
    outcome = bench.run(audit=3)
    assert (outcome.published, outcome.audit) == ((), None)
    assert any(note.startswith("no audit: ") for note in outcome.notes)


@pytest.mark.parametrize("host_budget_bytes", [None, 5 * MB])
def test_what_would_fill_the_host_is_tried_only_under_a_budget(
    tmp_path: Path, host_budget_bytes: int | None
) -> None:
    environment = flux.h200(torchao=None)
    hardware = environment.hardware.model_copy(update={"host_ram_bytes": 5 * MB})
    environment = environment.model_copy(update={"hardware": hardware})
    bench = StudyBench(tmp_path, environment=environment)
    request = bench.request(budget_bytes=GB, host_budget_bytes=host_budget_bytes)
    planning = Planning(request, bench.inventory, environment)
    baseline = baseline_trial(planning, bench)
    dropped = {item.stage for item in planning.survey(planning.taught_by(baseline)).dropped}
    assert "host_memory" in dropped
    pool = list(suspects(planning, planning.search(baseline), baseline))
    strata = {item.stratum for item in pool}
    assert ("host_memory" in strata) == (host_budget_bytes is not None)
    assert "useless" in strata
    rules = {item.reason for item in pool if item.stratum == "useless"}
    assert not any("not installed" in reason for reason in rules), "those would fail"


def baseline_trial(planning: Planning, bench: StudyBench) -> Trial:
    """One that measured exactly what was predicted."""
    plan = planning.baselines()[0].plan
    estimate = planning.baselines()[0].estimate
    shape = ShapeMeasurement(
        shape=bench.shapes[0], steps=4, step_ms=estimate.step_ms, first_call_s=1.0
    )
    memory = PeakMemory(peak_vram_bytes=estimate.peak_vram_bytes, load_peak_vram_bytes=0)
    measured = Measurement(rung="pipeline", shapes=(shape,), memory=memory, load_s=1.0, start_s=1.0)
    return Trial(rung="pipeline", plan=plan, measurement=measured, started_at=bench.clock.now())


def test_show_tells_what_the_audit_found(
    bench: StudyBench, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = bench.run(audit=4)
    assert run(["show", outcome.study_id[:12], "--registry", str(bench.registry.path)]) == 0
    shown = capsys.readouterr().out
    assert "Audit: 4 dropped candidates tried;" in shown
    assert "an audit of: " in shown
    assert "Of " in shown
    assert "Audit: 4 dropped candidates tried;" in text_of(outcome)
