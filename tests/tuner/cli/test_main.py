"""How every command ends: exit codes, messages on standard error, signals, pipes, lazy imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from registry.errors import InvalidInput, NoPlan, TunerError
from tuner.cli import main as main_module
from tuner.cli.main import COMMANDS, cli, run
from tuner.version import __version__

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-c", "from tuner.cli.main import main; main()"]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    @click.command("fail")
    def fail() -> None:
        raise raised[0]

    def only_fail(_group: object, _context: object, name: str) -> click.Command | None:
        return fail if name == "fail" else None

    monkeypatch.setattr(main_module.LazyGroup, "get_command", only_fail)
    return raised


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: tuner {name}" in capsys.readouterr().out


def test_help_lists_every_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TunerError("it broke"), 1),
        (InvalidInput("'x' is not a y", hint="Write z."), 2),
        (NoPlan("nothing for this GPU", hint="Run `tuner run`."), 3),
    ],
)
def test_an_error_is_a_message_a_hint_and_its_code(
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
    error: TunerError,
    code: int,
) -> None:
    failing.append(error)
    assert run(["fail"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"Error: {error.message}\n" + (
        f"Hint: {error.hint}\n" if error.hint else ""
    )


def test_an_interruption_is_130(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(KeyboardInterrupt())
    assert run(["fail"]) == 130
    assert "nothing was left half-done" in capsys.readouterr().err


def test_a_full_disk_is_told_without_a_traceback(
    failing: list[BaseException], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_module, "_silence_stdout", lambda: None)
    failing.append(OSError(28, "No space left on device", "/data/trial.json"))
    assert run(["fail"]) == 1
    assert capfd.readouterr().err == "Error: No space left on device: /data/trial.json\n"


def test_a_bug_is_not_dressed_up_as_an_error(failing: list[BaseException]) -> None:
    failing.append(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run(["fail"])


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get-plam"]) == 2
    assert "get-plam" in capsys.readouterr().err


def test_terminate_ends_a_command_like_an_interruption() -> None:
    code = (
        "import click, signal, sys\n"
        "from tuner.cli import main as m\n"
        "@click.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    signal.pause()\n"
        "m.LazyGroup.get_command = lambda self, ctx, name: wait\n"
        "sys.argv = ['tuner', 'wait']\n"
        "m.main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_a_closed_pipe_ends_in_silence() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    child = subprocess.run(
        [*PROGRAM, "models"], stdout=reader.stdin, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    assert reader.stdin is not None
    reader.stdin.close()
    assert child.returncode == 1
    assert child.stderr == b""


@pytest.mark.parametrize(
    ("command", "code"),
    [("models >&-", 0), ("models --json >&-", 0), ("models 2>&-", 0), ("models <&-", 0)],
)
def test_a_stream_that_was_closed_before_the_start(command: str, code: int) -> None:
    """As in a service without a terminal: nothing to print to is no reason to fail."""
    child = subprocess.run(
        ["bash", "-c", f'"$0" -m tuner {command}', sys.executable],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (child.returncode, child.stderr) == (code, "")


@pytest.mark.parametrize("name", ["models", "doctor", "space --help", "run --help"])
def test_a_terminal_of_ascii_alone(name: str, home: Path) -> None:
    """LANG=C with Python's own way out of it switched off."""
    ascii_only = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = subprocess.run(
        [sys.executable, "-m", "tuner", *name.split()],
        env={**os.environ, **ascii_only},
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert child.returncode in {0, 1}
    assert b"Traceback" not in child.stderr
    assert child.stdout.decode("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_told_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        child = subprocess.run(
            [*PROGRAM, "models", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert child.returncode == 1
    assert child.stderr == b"Error: No space left on device\n"


def test_only_the_command_that_runs_is_imported() -> None:
    code = (
        "import sys; from tuner.cli.main import run; run(['completion', 'fish'])\n"
        "print([name for name in sys.modules if name.startswith('tuner.cli.')], file=sys.stderr)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "tuner.cli.completion" in child.stderr
    assert "tuner.cli.models" not in child.stderr


def test_the_package_is_the_program_too() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tuner", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert child.stdout == f"tuner, version {__version__}\n"


def test_every_module_holds_a_command_of_its_name() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
