"""The state that events add up to, and the two views of it."""

from __future__ import annotations

import io
from functools import reduce

import pytest
from rich.console import Console

from registry.record import Trial
from tests.tuner.report import events_of_a_run as example
from tuner.events import MemorySample, TrialStarted
from tuner.report.lines import LineView
from tuner.report.live import LiveView, panel
from tuner.report.progress import RunState, after
from tuner.report.text import first_line, mark, outcome


def state_after(count: int) -> RunState:
    return reduce(after, example.EVENTS[:count], RunState())


def drawn(state: RunState, spent_s: float = 61.0, time_limit_s: float | None = 480.0) -> str:
    console = Console(width=110, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(panel(state, "flux-dev at 1024x1024", spent_s, time_limit_s))
    return capture.get()


def test_the_state_counts_trials_and_keeps_the_best() -> None:
    state = state_after(len(example.EVENTS))
    assert (state.finished, state.failed, state.kept_trials, state.all_trials) == (2, 1, 2, 4)
    assert state.study_id == "5f3c"
    assert state.best is not None
    assert state.best.label == "fp8 per row"
    assert state.trial is None


def test_the_peak_is_of_the_running_trial_alone() -> None:
    state = state_after(6)
    assert state.memory == MemorySample(9_000_000_000, 24_000_000_000)
    assert state.peak_bytes == 14_000_000_000
    assert after(state, TrialStarted("pipeline", "x", number=4)).peak_bytes == 0


@pytest.mark.parametrize(
    ("trial", "sign", "text"),
    [
        (example.MEASURED, "✓", "101 ms a step, 3.21 s a request, peak 14.2 GB"),
        (example.FAILED, "✗", "out of memory: needs 2 GB more"),
        (
            example.REJECTED,
            "✗",
            "90.0 ms a step, 2.90 s a request, peak 12.0 GB; rejected by the fast policy: 9 < 10",
        ),
        (example.DROPPED, "–", "not tried: would need 30 GB"),
    ],
)
def test_a_trial_is_one_line(trial: Trial, sign: str, text: str) -> None:
    assert (mark(trial), outcome(trial)) == (sign, text)


def test_a_trial_of_an_audit_says_what_it_was_dropped_for() -> None:
    audited = example.MEASURED.model_copy(update={"dropped": "memory: needs about 30 GB"})
    assert outcome(audited).endswith("; an audit of: memory: needs about 30 GB")
    assert mark(audited) == "✓"
    failed = example.FAILED.model_copy(update={"dropped": "memory: needs about 30 GB"})
    assert outcome(failed).startswith("out of memory: ")
    assert outcome(failed).endswith("; an audit of: memory: needs about 30 GB")


def test_a_message_is_cut_to_its_first_line() -> None:
    assert first_line("  one\ntwo") == "one"
    assert first_line(" \n") == "no message"
    assert first_line("x" * 500, width=10) == "x" * 9 + "…"


def test_lines_without_a_terminal() -> None:
    now_s = iter(range(100))
    lines: list[str] = []
    with LineView(lines.append, lambda: float(next(now_s))) as view:
        for event in example.EVENTS:
            view(event)
    assert lines == [
        "[    1.0 s] study 5f3c, continued after 2 trials",
        "[    2.0 s] search: denoiser",
        "[    3.0 s] trial 3 of about 20 (denoiser): fp8 per row",
        "[    4.0 s] ✓ fp8 per row: 101 ms a step, 3.21 s a request, peak 14.2 GB",
        "[    5.0 s] best so far: fp8 per row: 101 ms a step, peak 14.2 GB",
        "[    6.0 s] trial 4 (pipeline): bf16",
        "[    7.0 s] ✗ bf16: out of memory: needs 2 GB more",
        "[    8.0 s] another process uses 1.00 GB of the GPU",
    ]


def test_the_panel_of_a_running_trial() -> None:
    text = drawn(state_after(6))
    assert "flux-dev at 1024x1024" in text
    assert "3 of about 20 (denoiser): fp8 per row – compile 1/3" in text
    assert "9.00 GB of 24.0 GB, peak 14.0 GB" in text
    assert "6m 59s left, 1m 01s spent" in text
    assert "nothing proved yet" in text


def test_the_panel_between_trials() -> None:
    text = drawn(state_after(len(example.EVENTS)), time_limit_s=None)
    assert "none running" in text
    assert "no trial holds memory" in text
    assert "fp8 per row: 101 ms a step, peak 14.2 GB" in text
    assert "2 trials, 1 failed, 2 kept from before" in text
    assert "left" not in text


def test_the_panel_when_the_time_is_up_and_before_anything() -> None:
    assert "time is up" in drawn(RunState(), spent_s=500.0)
    assert "starting" in drawn(RunState())


def test_the_live_view_leaves_only_lines_on_the_terminal() -> None:
    written = io.StringIO()
    console = Console(width=110, file=written, force_terminal=True)
    with LiveView(console, lambda: 0.0, title="flux-dev", time_limit_s=60.0) as view:
        for event in example.EVENTS:
            view(event)
    assert view.state == state_after(len(example.EVENTS))
    assert written.getvalue().endswith("\x1b[2K")
    assert "✗ bf16: out of memory: needs 2 GB more" in written.getvalue()
    assert "another process uses 1.00 GB" in written.getvalue()
