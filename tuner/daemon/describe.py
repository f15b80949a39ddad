"""`python -m tuner.daemon.describe GPU`: what an interpreter is, in a process of its own.

Detected afresh each time: a package that was upgraded under a running daemon is seen, whatever the
daemon's own process remembers. The other side, `describe`, asks any interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from registry.environment import Environment
from registry.errors import TrialFailed, TunerError
from tuner.daemon.trust import refuse_foreign
from tuner.detect import detect
from tuner.endings import install_command
from tuner.protocol import PROTOCOL
from tuner.version import __version__

MODULE = "tuner.daemon.describe"
LIMIT_S = 10.0
"""Also how long the end of the daemon may have to wait for an answer."""


def describe(python: str, gpu: str, environ: Mapping[str, str]) -> Environment:
    """The environment in which `python` would run trials on `gpu`. No torch is imported.

    Raises TrialFailed naming what is wrong with the interpreter and the command that mends it, and
    InvalidInput for one that is not ours to run.
    """
    refuse_foreign(python)
    try:
        done = subprocess.run(
            [python, "-P", "-m", MODULE, gpu],
            env=dict(environ),
            cwd=Path(python).parent if Path(python).is_absolute() else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except OSError as error:
        raise TrialFailed(f"the interpreter {python} cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise TrialFailed(f"the interpreter {python} said nothing for {LIMIT_S:g} s") from error
    return _parsed(python, done)


def _parsed(python: str, done: subprocess.CompletedProcess[str]) -> Environment:
    try:
        said: Any = json.loads(done.stdout)
        protocol, environment = said["protocol"], said["environment"]
        if protocol == PROTOCOL:
            return Environment.model_validate(environment)
        why = f"its tuner {said['tuner']} speaks protocol {protocol}, not {PROTOCOL}"
    except (ValueError, KeyError, TypeError, ValidationError):
        lines = (done.stderr or done.stdout).strip().splitlines()
        why = lines[-1] if lines else f"exit code {done.returncode}"
    raise TrialFailed(
        f"the interpreter {python} does not describe itself: {why}",
        hint=f"It needs a tuner like this one: {install_command(python)}",
    )


def main(gpu: str) -> int:
    try:
        environment = detect(gpu).environment
    except TunerError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the answer
        return error.exit_code
    said = {
        "tuner": __version__,
        "protocol": PROTOCOL,
        "environment": environment.model_dump(mode="json"),
    }
    print(json.dumps(said))  # noqa: T201 - the answer
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
