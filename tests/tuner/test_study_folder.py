"""Folders of studies: held while a run lives, collected when nobody comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry.errors import DeviceBusy, TrialFailed
from registry.store import Registry
from tests.tuner.study_bench import StudyBench
from tests.tuner.test_study import interrupted_after
from tuner.study_folder import KEPT_FOR, collect_abandoned, working_in

NOW = datetime(2027, 1, 1, tzinfo=UTC)
HOLD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from tuner.study_folder import working_in
with working_in(Path(sys.argv[1]), datetime.now(UTC)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def bench(tmp_path: Path) -> StudyBench:
    return StudyBench(tmp_path)


def folder_of(bench: StudyBench, name: str, age: timedelta) -> Path:
    folder = bench.settings.cache_dir / "studies" / name
    (folder / "compile").mkdir(parents=True)
    (folder / "compile" / "graph").write_bytes(b"compiled")
    make_old(folder, age)
    return folder


def make_old(folder: Path, age: timedelta) -> None:
    then_s = (NOW - age).timestamp()
    os.utime(folder, (then_s, then_s))


def collect(folder: Path, registry: Registry) -> tuple[str, ...]:
    return collect_abandoned(folder.parent, registry, NOW)


def test_a_folder_nobody_came_back_to_goes_after_its_time(bench: StudyBench) -> None:
    young = folder_of(bench, "a" * 32, KEPT_FOR - timedelta(hours=1))
    old = folder_of(bench, "b" * 32, KEPT_FOR + timedelta(hours=1))
    assert collect(old, bench.registry) == (old.name,)
    assert young.is_dir()
    assert not old.exists()


def test_an_ended_study_leaves_no_folder_behind(bench: StudyBench) -> None:
    interrupted_after(bench, 2)
    folder = bench.settings.cache_dir / "studies" / bench.study().id
    make_old(folder, timedelta(0))
    assert collect(folder, bench.registry) == ()
    bench.registry.finish_study(bench.study().id, status="failed", summary={}, now=NOW)
    assert collect(folder, bench.registry) == (folder.name,)


def test_a_name_that_is_no_study_goes_by_age(bench: StudyBench) -> None:
    odd = folder_of(bench, "not a study", timedelta(0))
    assert collect(odd, bench.registry) == ()
    make_old(odd, 2 * KEPT_FOR)
    assert collect(odd, bench.registry) == (odd.name,)


def test_there_need_not_be_any(bench: StudyBench, tmp_path: Path) -> None:
    assert collect_abandoned(tmp_path / "none", bench.registry, NOW) == ()


def test_a_living_study_keeps_its_folder_however_old(bench: StudyBench) -> None:
    folder = folder_of(bench, "a" * 32, timedelta(0))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        make_old(folder, 10 * KEPT_FOR)
        assert collect(folder, bench.registry) == ()
        with pytest.raises(DeviceBusy, match="at work on this very study"), working_in(folder, NOW):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert collect(folder, bench.registry) == (folder.name,)


def test_going_on_with_a_study_makes_its_folder_young(bench: StudyBench) -> None:
    folder = folder_of(bench, "a" * 32, 2 * KEPT_FOR)
    with working_in(folder, NOW):
        pass
    assert collect(folder, bench.registry) == ()


def test_a_folder_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "study"
    with pytest.raises(TrialFailed, match=f"the study's folder {folder}"), working_in(folder, NOW):
        raise AssertionError("there is none")


def test_a_run_collects_what_others_left(bench: StudyBench) -> None:
    """By the run's own clock, which is another year's here."""
    left = folder_of(bench, "a" * 32, timedelta(days=3650))
    bench.run()
    assert not left.exists()
    assert bench.leftovers() == []
