"""`config.toml`: its defaults, what it accepts, and how it says what is wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.errors import InvalidInput
from tuner.cli.main import run
from tuner.daemon.config import Config, Hours, as_toml, load_config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_without_a_file_the_defaults_hold(path: Path) -> None:
    assert load_config(path) == Config()
    path.write_text("")
    assert load_config(path) == Config()


def test_everything_can_be_said(path: Path) -> None:
    path.write_text(
        '[daemon]\nlease = "5m"\nheartbeat = "1m"\nquiet_hours = ["22:00-7:00", "12:30-13:00"]\n'
        'interpreters = ["/app/bin/python"]\n'
        '[daemon.idle]\nwindow = "90s"\nmemory = "2GiB"\nutilization_percent = 5\n'
    )
    daemon = load_config(path).daemon
    assert (daemon.lease, daemon.heartbeat) == (300.0, 60.0)
    assert (daemon.idle.window, daemon.idle.memory) == (90.0, 2 * 2**30)
    assert daemon.interpreters == ("/app/bin/python",)
    night, noon = daemon.quiet_hours
    assert [night.holds(at(*when)) for when in ((23,), (6, 59), (7,))] == [True, True, False]
    assert [noon.holds(at(*when)) for when in ((12, 30), (13,))] == [True, False]


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 1, 1, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[daemon]\nlease = 120", "daemon.lease: 120 is not a duration such as '10m'"),
        ("[daemon]\nlease = 120.0", "daemon.lease: 120.0 is not a duration such as '10m'"),
        ("[daemon.idle]\nmemory = 1e9", "daemon.idle.memory: 1000000000.0 is not an amount"),
        ('[daemon]\nlease = "soon"', "daemon.lease: 'soon' is not"),
        ('[daemon]\nleese = "1m"', "daemon.leese"),
        ("[daemon]\nnice = 40", "daemon.nice"),
        ('[daemon]\nquiet_hours = ["25:00-7:00"]', "daemon.quiet_hours.0"),
        ('[daemon]\nquiet_hours = ["night"]', "part of the day such as '22:00-07:00'"),
        ('[daemon.idle]\nmemory = "1"', "daemon.idle.memory"),
        ("[daemon", "cannot be read"),
        ('[daemon]\nlease = "1m"\nheartbeat = "50s"', "heartbeat must be at most half"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_config(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_hours_that_do_not_pass_midnight() -> None:
    day = Hours.parse("9:00-17:00")
    assert [day.holds(at(hour)) for hour in (8, 9, 16, 17)] == [False, True, True, False]


def test_what_is_shown_can_be_read_back(path: Path) -> None:
    path.write_text(as_toml(Config()))
    assert load_config(path) == Config()
    path.write_text(
        '[daemon]\nlease = "90s"\nstep = "250ms"\nquiet_hours = ["22:00-7:00"]\nnice = 3\n'
        "interpreters = ['/odd \"name\"\\venv/bin/python']\n"
        '[daemon.idle]\nmemory = "1500MB"\n[retention]\nlogs_age = "30d"\n'
    )
    config = load_config(path)
    assert config.retention.logs_age == 30 * 86_400
    path.write_text(as_toml(config))
    assert load_config(path) == config


@pytest.mark.usefixtures("home")
def test_the_file_is_shown_and_checked_from_the_command_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "show"]) == 0
    assert 'lease = "2m"' in capsys.readouterr().out
    assert run(["config", "check", str(path)]) == 2, "a file that was named must be there"
    assert "No such file" in capsys.readouterr().err
    path.write_text("")
    assert run(["config", "check", str(path)]) == 0
    path.write_text('[daemon]\nlease = "soon"')
    assert run(["config", "check", str(path)]) == 2
    assert "daemon.lease: 'soon' is not a duration" in capsys.readouterr().err
    path.write_text('[daemon]\nlease = "5m"')
    capsys.readouterr()
    assert run(["config", "show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["daemon"]["lease"] == 300.0
