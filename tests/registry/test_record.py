from __future__ import annotations

from tests.registry import samples


def test_a_baseline_is_no_faster_than_itself() -> None:
    won = samples.record()
    assert won.plan == won.baseline_plan
    assert won.speedup == 1.0


def test_the_speed_up_is_of_one_run() -> None:
    other = samples.record(threads=2)
    ours, theirs = other.measurement.latency_s, other.baseline.latency_s
    assert ours is not None
    assert theirs is not None
    assert other.speedup == theirs / ours
