"""What a trial does beside measuring, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tuner.fake_worker import trial_job
from tuner.pipeline.device import Device
from tuner.pipeline.timing import RequestTimes
from tuner.pipeline.trial import TrialRun

FIRST = RequestTimes(20.0, 0.0, 0.0, (), images=None, embeddings=())


@pytest.mark.parametrize(("limit_s", "is_short"), [(None, False), (90.0, False), (60.0, True)])
def test_short_of_time_nothing_is_compiled_ahead(
    tmp_path: Path,
    limit_s: float | None,
    is_short: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its import took 30 s, and its first request 20: compiling once more would take no longer."""
    job = trial_job(tmp_path).model_copy(update={"limit_s": limit_s})
    run = TrialRun(job, Device(None, 2**30), 30.0, lambda *_: None)
    asked: list[object] = []

    def compile_ahead(report: object) -> tuple[()]:
        asked.append(report)
        return ()

    monkeypatch.setattr(run.ahead, "compile_ahead", compile_ahead)
    assert run._functions([FIRST]) == ()
    assert bool(asked) is not is_short
    assert ("the trial's time is short" in caplog.text) is is_short
