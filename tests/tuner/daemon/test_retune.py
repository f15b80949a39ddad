"""A package changes, and the plans proved with the old one are tuned again: with real processes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from registry.errors import TrialFailed
from tests.tuner.daemon.machine import DaemonMachine
from tests.tuner.study_bench import Key
from tuner.daemon.describe import describe


def test_a_package_that_changes_is_seen_by_the_next_look(machine: DaemonMachine) -> None:
    versions = []
    for version in ("98.0", "99.0"):
        machine.install("torchao", version)
        versions.append(describe(sys.executable, "cpu", machine.environ).runtime.torchao)
    assert versions == ["98.0", "99.0"]


def test_an_interpreter_without_tuner_is_told_how_to_get_it(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(TrialFailed, match="No module named 'tuner'") as caught:
        describe(str(bare), "cpu", {})
    assert f"{bare} -m pip install" in (caught.value.hint or "")
    bare.chmod(0o644)
    with pytest.raises(TrialFailed, match="cannot be started"):
        describe(str(bare), "cpu", {})


def test_an_upgrade_of_the_apps_package_is_tuned_for(machine: DaemonMachine) -> None:
    machine.install("accelerate", "98.0")
    old = machine.be_real()
    assert old.runtime.accelerate == "98.0"
    machine.enqueue()
    machine.once()
    before = machine.registry.candidates()
    assert {stored.record.environment.runtime.accelerate for stored in before} == {"98.0"}
    machine.once()
    assert machine.jobs.counts() == {"done": 1}, "nothing changed: nothing to do"

    machine.install("accelerate", "99.0")
    new = machine.be_real()
    tried_before = machine.bench.trial_jobs()
    said = machine.once()
    assert "accelerate: 99.0 here, 98.0 when proved" in said
    retuned, asked = machine.jobs.list()
    assert (retuned.status, retuned.body.reason) == ("done", "drift")
    assert retuned.body.key.python == asked.body.key.python
    winner = machine.registry.record(retuned.body.first[0]).record.plan.digest
    trials = machine.bench.trial_jobs() - tried_before
    assert trials["pipeline", winner] == 1
    assert 2 * searched(trials) <= searched(tried_before)
    exact = machine.registry.candidates(runtime=new.runtime.digest)
    assert {stored.record.study for stored in exact} == {retuned.study_id}
    machine.once()
    assert machine.jobs.counts() == {"done": 2}


def searched(trials: Counter[Key]) -> int:
    """Plans that were looked at. How many proofs and replays follow is up to how steady the
    machine is: workers' memory is real here, and a replay that differs is repeated."""
    return sum(count for (rung, _), count in trials.items() if rung == "denoiser")


def test_a_change_for_the_worse_is_told(machine: DaemonMachine) -> None:
    machine.install("accelerate", "98.0")
    machine.be_real()
    machine.enqueue()
    machine.once()
    machine.install("accelerate", "99.0")
    machine.bench.rule({"slower": 1.5}, kind="trial")
    machine.be_real()
    machine.once()
    message = machine.jobs.list()[0].message or ""
    assert "1.50 times as slow as before" in message
    assert "accelerate: 99.0 here, 98.0 when proved" in message
    old = machine.jobs.list()[0].body.first[0]
    assert f"`tuner pin {old[:12]}`" in message
