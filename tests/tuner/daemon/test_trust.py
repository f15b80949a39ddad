"""Whose interpreters a daemon runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from registry.errors import InvalidInput, TrialFailed
from tests.tuner.daemon.machine import DaemonMachine
from tuner.daemon.trust import refuse_foreign

STRANGER = 4242


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A venv's: a link to root's."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    path = folder / "python"
    path.symlink_to(sys.executable)
    return path


def test_our_own_and_roots_are_run(python: Path) -> None:
    refuse_foreign(str(python))
    refuse_foreign(sys.executable)


@pytest.mark.parametrize("part", ["venv", "venv/bin", "venv/bin/python"])
def test_what_another_user_owns_on_the_way_is_refused(
    python: Path, tmp_path: Path, part: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(tmp_path / part, STRANGER, -1, follow_symlinks=False)
    with pytest.raises(InvalidInput, match=f"{part} belongs to user {STRANGER}"):
        refuse_foreign(str(python))


def test_what_everybody_may_replace_is_refused(python: Path, tmp_path: Path) -> None:
    (tmp_path / "venv").chmod(0o777)
    with pytest.raises(InvalidInput, match="venv can be written by everybody"):
        refuse_foreign(str(python))
    (tmp_path / "venv").chmod(0o1777)
    refuse_foreign(str(python))


def test_where_a_link_leads_counts_too(python: Path, tmp_path: Path) -> None:
    """Through any number of links."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "python").symlink_to(sys.executable)
    python.unlink()
    python.symlink_to("../link")
    (tmp_path / "venv" / "link").symlink_to(shared / "python")
    refuse_foreign(str(python))
    shared.chmod(0o777)
    with pytest.raises(InvalidInput, match="shared can be written by everybody"):
        refuse_foreign(str(python))


def test_a_name_that_is_looked_up_is_refused() -> None:
    with pytest.raises(InvalidInput, match="whole path"):
        refuse_foreign("python3")
    with pytest.raises(TrialFailed, match="cannot be used"):
        refuse_foreign("/no/such/python")


def test_an_interpreter_that_is_being_made_anew_is_tried_again(machine: DaemonMachine) -> None:
    job = machine.enqueue()
    machine.python.unlink()
    machine.once()
    job = machine.jobs.get(job.id)
    assert (job.status, job.failures) == ("queued", 1)
    assert "cannot be used" in (job.message or "")


def test_a_job_with_such_an_interpreter_is_not_run(machine: DaemonMachine) -> None:
    machine.python.parent.chmod(0o777)
    job = machine.enqueue()
    said = machine.once()
    job = machine.jobs.get(job.id)
    assert (job.status, job.failures) == ("failed", 1)
    assert "can be written by everybody" in (job.message or "")
    assert "interpreter not watched" in said
    assert machine.bench.jobs == []
