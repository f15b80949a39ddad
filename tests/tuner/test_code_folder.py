"""The folder that compiled code is run from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.errors import UntrustedArtifact
from tuner.code_folder import place, private_folder
from tuner.compiled_code import CodePart, CompiledCode, pack

ROOT = Path(__file__).parents[2]
PART = CodePart("library", "ab/cabcdefgh.main.so", b"\x7fELF")


def test_it_is_made_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "above" / "code")
        place([PART], folder)
    finally:
        os.umask(before)
    modes = [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "ab")]
    assert modes == ["0o700", "0o700"]
    assert private_folder(folder) == folder


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_one_that_others_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = private_folder(tmp_path / "code")
    folder.chmod(mode)
    with pytest.raises(UntrustedArtifact, match="not this user's alone"):
        private_folder(folder)


def test_one_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder(tmp_path / "code")
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(UntrustedArtifact, match="not this user's alone"):
        private_folder(folder)


def test_a_link_is_refused(tmp_path: Path) -> None:
    private_folder(tmp_path / "elsewhere")
    (tmp_path / "code").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedArtifact, match="is not a folder"):
        private_folder(tmp_path / "code")


@pytest.mark.parametrize("flags", [os.ST_NOEXEC, os.ST_NOEXEC | os.ST_NOSUID])
def test_one_that_runs_no_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """torch would fail in the middle of a request."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    with pytest.raises(UntrustedArtifact, match="noexec"):
        private_folder(tmp_path / "code")


def test_what_lies_there_stays_and_what_differs_is_replaced(tmp_path: Path) -> None:
    place([PART], tmp_path)
    path = tmp_path / PART.name
    first = path.stat().st_ino
    place([PART], tmp_path)
    assert path.stat().st_ino == first
    path.write_bytes(b"\x7fELg")
    place([PART], tmp_path)
    assert path.read_bytes() == PART.data
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / PART.name
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        place([PART], tmp_path)
    assert list(target.parent.iterdir()) == [target]


RACER = """
import sys
from pathlib import Path
from tuner.code_folder import place, private_folder
from tuner.compiled_code import unpack
data, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
sys.stdin.read()
place(unpack(data).parts, private_folder(folder))
"""


def test_eight_processes_place_the_same_at_once(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrst"
    parts = [
        CodePart("library", f"a{one}/cabcdefg{one}.so", one.encode() * 50_000) for one in letters
    ]
    (tmp_path / "code.bin").write_bytes(pack(CompiledCode(tuple(parts))))
    folder = tmp_path / "code"
    command = [sys.executable, "-c", RACER, str(tmp_path / "code.bin"), str(folder)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) for _ in range(8)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    assert [racer.wait(60) for racer in racers] == [0] * 8
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in found} == {part.name for part in parts}
    assert all((folder / part.name).read_bytes() == part.data for part in parts)
