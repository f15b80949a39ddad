"""The device lock: between processes its behaviour is in test_runner_parent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from registry.errors import DeviceBusy, DeviceError
from tuner.locks import DeviceLock

UUID = "GPU-1111"


def test_second_lock_on_one_device_is_refused(tmp_path: Path) -> None:
    with DeviceLock(UUID, tmp_path, ["tuner", "run", "--model", "sdxl"]):
        with pytest.raises(DeviceBusy) as caught:
            DeviceLock(UUID, tmp_path).acquire()
        assert f"holds {UUID}: process {os.getpid()} (tuner run --model sdxl)" in str(caught.value)
        assert f"kill {os.getpid()}" in str(caught.value)
        with DeviceLock("GPU-2222", tmp_path):
            pass
    with DeviceLock(UUID, tmp_path):
        pass


def test_a_child_keeps_the_lock_after_its_release(tmp_path: Path) -> None:
    lock = DeviceLock(UUID, tmp_path).acquire()
    assert lock.descriptor is not None
    child = subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(lock.descriptor,)
    )
    lock.release()
    with pytest.raises(DeviceBusy):
        DeviceLock(UUID, tmp_path).acquire()
    child.communicate()
    with DeviceLock(UUID, tmp_path).acquire(patience_s=0):
        pass


def test_an_ordinary_child_does_not(tmp_path: Path) -> None:
    lock = DeviceLock(UUID, tmp_path).acquire()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    lock.release()
    with DeviceLock(UUID, tmp_path):
        child.communicate()


def test_holder_with_its_trial(tmp_path: Path) -> None:
    lock = DeviceLock("MIG-1/x y", tmp_path, ["a", "b"])
    assert lock.holder() is None
    with lock:
        lock.note_worker(4711)
        holder = DeviceLock("MIG-1/x y", tmp_path).holder()
        assert holder is not None
        assert (holder.pid, holder.command, holder.worker_pid) == (os.getpid(), "a b", 4711)
    assert lock.path.parent == tmp_path


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x", "command": ""}'])
def test_unreadable_content_still_refuses(tmp_path: Path, content: str) -> None:
    with DeviceLock(UUID, tmp_path) as lock:
        lock.path.write_text(content)
        with pytest.raises(DeviceBusy, match="another tuning run holds GPU-1111"):
            DeviceLock(UUID, tmp_path).acquire(patience_s=0)


def test_a_dead_holder_is_named_as_such(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with DeviceLock(UUID, tmp_path) as lock:
        lock.path.write_text(json.dumps({"pid": gone.pid, "command": "", "worker_pid": 99}))
        with pytest.raises(DeviceBusy, match="run that has died") as caught:
            DeviceLock(UUID, tmp_path).acquire(patience_s=0.1)
        assert "kill -9 99" in str(caught.value)


def test_shorter_content_leaves_nothing_of_the_longer(tmp_path: Path) -> None:
    with DeviceLock(UUID, tmp_path, ["x" * 500]):
        pass
    with DeviceLock(UUID, tmp_path, ["y"]) as lock:
        holder = lock.holder()
        assert holder is not None
        assert holder.command == "y"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot write the lock file") as caught:
        DeviceLock(UUID, tmp_path / "file" / "locks").acquire()
    assert "TUNER_HOME" in str(caught.value)


def test_note_without_the_lock(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not held"):
        DeviceLock(UUID, tmp_path).note_worker(1)
