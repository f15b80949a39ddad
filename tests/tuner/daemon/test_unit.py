"""The systemd unit: what it starts, what it may, and that it is written where systemd looks."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import InvalidInput
from registry.location import locate
from tuner.cli.main import run
from tuner.daemon.unit import Unit

Captured = pytest.CaptureFixture[str]


def unit(python: str = "/opt/venv/bin/python", **environ: str) -> Unit:
    return Unit(python, ("--gpu", "0"), environ, (Path("/var/lib/tuner"),))


def service(text: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return dict(parser["Service"])


def test_it_notifies_is_watched_and_hardened() -> None:
    said = service(unit().text())
    assert said["Type"] == "notify"
    assert said["ExecStart"] == "/opt/venv/bin/python -m tuner daemon --gpu 0"
    assert int(said["WatchdogSec"]) > 0
    assert int(said["TimeoutStopSec"]) > 15
    assert said["ProtectSystem"] == "strict"
    assert said["ReadWritePaths"] == "/var/lib/tuner"


def test_what_systemd_would_expand_is_written_out() -> None:
    said = service(unit("/opt/my venv/100%/$x/python").text())
    assert said["ExecStart"].startswith('"/opt/my venv/100%%/$$x/python" -m tuner')
    with pytest.raises(InvalidInput, match="line break"):
        unit("/opt/a\nExecStartPre=evil").text()


def test_only_a_command_expands_variables() -> None:
    text = unit(TUNER_HOME="/srv/$x/100%").text()
    assert 'Environment="TUNER_HOME=/srv/$x/100%%"' in text


def test_a_registry_is_named_by_its_whole_path(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A service is started in another folder."""
    monkeypatch.chdir(home)
    assert run(["daemon", "install", "--print", "--registry", "mine.sqlite3"]) == 0
    assert f"--registry {home / 'mine.sqlite3'}" in capsys.readouterr().out
    text = unit(TUNER_HOME="here", TUNER_REGISTRY="mine", CUDA_VISIBLE_DEVICES="0").text()
    assert f"Environment=TUNER_HOME={home / 'here'}\n" in text
    assert f"Environment=TUNER_REGISTRY={home / 'mine'}\n" in text
    assert "Environment=CUDA_VISIBLE_DEVICES=0\n" in text


@pytest.mark.usefixtures("home")
def test_a_registry_on_a_server_is_named_whole_and_its_artifacts_may_be_written(
    home: Path, capsys: Captured
) -> None:
    url = "postgresql+psycopg://me@host/tuner?artifacts=/mnt/tuner"
    assert run(["daemon", "install", "--print", "--registry", url]) == 0
    said = service(capsys.readouterr().out)
    (word,) = (word for word in shlex.split(said["ExecStart"]) if word.startswith("postgresql"))
    assert locate(word.replace("%%", "%")) == locate(url)
    assert "/mnt/tuner" in said["ReadWritePaths"].split()


def test_an_option_before_install_is_not_lost_in_silence(capsys: Captured) -> None:
    assert run(["daemon", "--gpu", "1", "install", "--print"]) == 2
    assert "--gpu belongs after `install`" in capsys.readouterr().err


def test_only_what_places_things_is_taken_over() -> None:
    text = unit(TUNER_HOME="/srv/tuner", HF_TOKEN="secret", PATH="/bin").text()
    assert "Environment=TUNER_HOME=/srv/tuner" in text
    assert "secret" not in text


def test_it_is_written_for_this_user(home: Path, capsys: Captured) -> None:
    assert run(["daemon", "install", "--gpu", "GPU-1"]) == 0
    path = home / ".config" / "systemd" / "user" / "diffusion-tuner-GPU-1.service"
    assert f"{sys.executable} -m tuner daemon --gpu GPU-1" in path.read_text()
    assert "systemctl --user daemon-reload" in capsys.readouterr().out
    for folder in service(path.read_text())["ReadWritePaths"].split():
        assert Path(folder).is_dir(), "systemd starts no unit whose folders are not there"


def test_it_can_be_looked_at_first(home: Path, capsys: Captured) -> None:
    assert run(["daemon", "install", "--print"]) == 0
    assert capsys.readouterr().out.startswith("[Unit]")
    assert not list(home.iterdir())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "diffusion-tuner.service"
    path.write_text(unit(sys.executable).text())
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
