"""A C++ compiler for the tests that keeps what it compiled: the next test to ask takes it.

Dozens of tests compile the same tiny models in cache folders of their own, and so in each the same
libraries, those by which Inductor tries the processor's instructions (8 s) among them.
Run as a program it is the compiler, under the name of the real one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REAL, KEPT = "TESTS_CXX_REAL", "TESTS_CXX_KEPT"
SCRIPT = """\
#!/bin/sh
{real}='{compiler}' {kept}='{folder}' exec '{python}' -I -S '{program}' "$@"
"""


def install(folder: Path) -> None:
    """From now on it is the compiler of this process and its children, where there is one."""
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return
    kept = folder / "kept"
    kept.mkdir()
    script = folder / Path(compiler).name
    script.write_text(
        SCRIPT.format(
            real=REAL,
            kept=KEPT,
            compiler=compiler,
            folder=kept,
            python=sys.executable,
            program=Path(__file__).resolve(),
        )
    )
    script.chmod(0o755)
    os.environ["CXX"] = str(script)


def main(arguments: list[str]) -> int:
    compiler, kept = os.environ.pop(REAL), Path(os.environ.pop(KEPT))
    command = [compiler, *arguments]
    sources = [Path(item) for item in arguments if item.endswith(".cpp")]
    if len(sources) != 1 or arguments.count("-o") != 1:
        os.execv(compiler, command)
    target = Path(arguments[arguments.index("-o") + 1])
    same = kept / digest(command, sources[0], target)
    if not same.exists():
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            return status
        keep(target, same)
    else:
        shutil.copy(same, target)
    return 0


def digest(command: list[str], source: Path, target: Path) -> str:
    """Of the source's text and of the command, wherever the two files lie."""
    where = {str(source): source.name, str(target): target.name}
    words = [where.get(word, word) for word in command]
    return hashlib.sha256("\0".join([*words, source.read_text()]).encode()).hexdigest()


def keep(target: Path, same: Path) -> None:
    """At once whole: others look for it meanwhile."""
    part = same.with_name(f"{same.name}.{os.getpid()}")
    shutil.copy(target, part)
    part.rename(same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
