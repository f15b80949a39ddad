"""Process trees and what counts as a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.proc import (
    COMPILER,
    descendants,
    process_table,
    proportional_bytes,
    read_process,
    resident_memory,
)
from tuner.processes import ProcessTree, adopting_orphans

MIB = 2**20


def test_this_process_in_the_table() -> None:
    own = process_table()[os.getpid()]
    assert own.parent_pid == os.getppid()
    assert own.session == os.getsid(0)
    assert not own.is_dead


def test_a_name_with_brackets_and_spaces(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to(sys.executable)
    child = subprocess.Popen([program, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    process = read_process(child.pid)
    child.communicate(b"\n")
    assert process is not None
    assert process.parent_pid == os.getpid()


def test_the_dead_weigh_nothing() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    process = read_process(child.pid)
    assert process is not None
    assert process.is_dead
    assert proportional_bytes(child.pid) == 0
    child.wait()
    assert read_process(child.pid) is None
    assert resident_memory(child.pid) is None
    assert proportional_bytes(child.pid) == 0


def test_own_memory() -> None:
    kept = b"x" * (64 * MIB)
    resident = resident_memory(os.getpid())
    assert resident is not None
    assert 64 * MIB < resident.now_bytes <= resident.peak_bytes
    assert 64 * MIB < proportional_bytes(os.getpid()) <= resident.now_bytes + MIB
    assert len(kept) == 64 * MIB


@pytest.mark.parametrize(
    "name",
    ["c++", "g++-12", "x86_64-linux-gnu-g++-12", "cc1plus", "collect2", "ld", "ld.gold", "as",
     "clang++-18", "ptxas", "nvcc"],
)  # fmt: skip
def test_compilers(name: str) -> None:
    assert COMPILER.fullmatch(name)


@pytest.mark.parametrize("name", ["python3.11", "bash", "tuner", "ldconfig", "assistant", "gld2"])
def test_others_are_none(name: str) -> None:
    assert not COMPILER.fullmatch(name)


def test_descendants_of_all_depths() -> None:
    table = process_table()
    assert os.getpid() in descendants(table, {os.getppid()})
    assert os.getpid() not in descendants(table, {os.getpid()})


def test_ending_a_tree_leaves_strangers_alone() -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    ours = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with adopting_orphans():
        tree = ProcessTree(ours.pid, "nobody's")
        assert [process.pid for process in tree.members()] == [ours.pid]
        tree.end(grace_s=5)
    assert ours.wait() < 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_child_in_our_own_session_does_not_draw_us_in() -> None:
    child = subprocess.Popen(["sleep", "600"])
    tree = ProcessTree(child.pid, "x")
    tree.members()
    assert [process.pid for process in tree.members()] == [child.pid]
    child.kill()
    child.wait()


def test_ending_an_ended_tree() -> None:
    child = subprocess.Popen(["true"], start_new_session=True)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ProcessTree(child.pid, "x").end(grace_s=5)
    assert child.wait() == 0
