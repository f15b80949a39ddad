"""The entry point: find the command, run it, turn every ending into an exit code."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click
from typing_extensions import override

from registry.errors import Interrupted, TunerError
from tuner.version import __version__

COMMANDS = {
    "run": "tuner.cli.run",
    "get-plan": "tuner.cli.get_plan",
    "show": "tuner.cli.show",
    "history": "tuner.cli.history",
    "models": "tuner.cli.models",
    "doctor": "tuner.cli.doctor",
    "space": "tuner.cli.space",
    "profile": "tuner.cli.profile",
    "verify": "tuner.cli.verify",
    "model-error": "tuner.cli.model_error",
    "revoke": "tuner.cli.revoke",
    "rollback": "tuner.cli.rollback",
    "pin": "tuner.cli.pin",
    "registry": "tuner.cli.registry",
    "export": "tuner.cli.export",
    "import": "tuner.cli.import_",
    "push": "tuner.cli.push",
    "pull": "tuner.cli.pull",
    "keys": "tuner.cli.keys",
    "serve": "tuner.cli.serve",
    "tokens": "tuner.cli.tokens",
    "autoquant": "tuner.cli.autoquant",
    "enqueue": "tuner.cli.enqueue",
    "status": "tuner.cli.status",
    "logs": "tuner.cli.logs",
    "cancel": "tuner.cli.cancel",
    "pause": "tuner.cli.pause",
    "resume": "tuner.cli.resume",
    "daemon": "tuner.cli.daemon",
    "config": "tuner.cli.config",
    "completion": "tuner.cli.completion",
}
"""Each command's module, imported when it is asked for; each holds a `command`."""

GC_THRESHOLD = 100_000
"""Imports are most of a short command, and what they make lives to its end: looking for garbage in
it, and once more at exit, would be a quarter of `get-plan`'s time."""


class LazyGroup(click.Group):
    """A group whose commands are imported only when they run or when help lists them."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tuner")
def cli() -> None:
    """Find, prove and fetch the fastest way to run a diffusion model on this machine.

    `tuner run` searches within a memory budget and publishes what it proved; `tuner get-plan`
    answers an app from what was published.
    """


def main() -> NoReturn:
    """What the installed `tuner` program runs."""
    gc.set_threshold(GC_THRESHOLD)
    signal.signal(signal.SIGTERM, _stop)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code. Prints errors; lets only bugs through."""
    try:
        code = cli.main(list(arguments), prog_name="tuner", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return report(Interrupted("interrupted; nothing was left half-done"))
    except TunerError as error:
        return report(error)
    except OSError as error:
        return _os_error(error)
    return code if isinstance(code, int) else 0


def report(error: TunerError) -> int:
    """Print an error and its hint on standard error; its exit code."""
    click.echo(f"Error: {error.message}", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)
    return error.exit_code


def _os_error(error: OSError) -> int:
    """A full disk or a closed pipe is the machine's answer, not a bug to show a traceback for."""
    _silence_stdout()
    if error.errno == errno.EPIPE:
        return TunerError.exit_code
    where = f": {error.filename}" if error.filename else ""
    return report(TunerError(f"{error.strerror or error}{where}"))


def _silence_stdout() -> None:
    """Python flushes standard output once more as it exits, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run the way Ctrl-C does: what is finished is kept, the worker dies."""
    raise KeyboardInterrupt
