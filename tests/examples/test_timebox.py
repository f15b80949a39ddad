"""Stages end when the clock says so; the clock is the test's."""

from __future__ import annotations

import json
from pathlib import Path

from examples.train_tiny.timebox import Journal, TimeBox, learning_rate


class Clock:
    """One second later each time it is looked at."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def test_a_stage_ends_on_time() -> None:
    box = TimeBox(100.0, 20.0, Clock())
    shares = [share for _, share in box.until(0.5).steps()]
    assert len(shares) == 9
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1


def test_a_stage_that_begins_late_still_takes_one_step() -> None:
    clock = Clock()
    clock.now_s = 500.0
    assert [step for step, _ in TimeBox(100.0, 20.0, clock).until(0.5).steps()] == [0]


def test_the_learning_rate_rises_and_falls_to_nearly_nothing() -> None:
    assert learning_rate(1.0, 0, 0.0) == 0.01
    assert learning_rate(1.0, 5000, 0.4) == 1.0
    assert 0 < learning_rate(1.0, 9000, 1.0) < 0.06


def test_the_journal_keeps_curves(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TimeBox(100.0, 20.0, Clock()))
    journal.note("vae", 0, l1=0.5)
    journal.note("vae", 50, l1=0.123456789)
    journal.save()
    kept = json.loads((tmp_path / "curve.json").read_text())
    assert [point["l1"] for point in kept["vae"]] == [0.5, 0.12346]
