"""The test suite's own promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import TunerError
from registry.plan import Plan, parse_plan
from scripts.make_schema import TARGET, plan_schema
from tests.conftest import soak_seeds


def test_the_default_home_cannot_be_written() -> None:
    with pytest.raises(OSError, match=r"Not a directory"):
        (Path.home() / ".local").mkdir(parents=True)


def test_child_processes_cannot_write_it_either() -> None:
    code = "import pathlib; (pathlib.Path.home() / 'x').mkdir()"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert child.returncode == 1
    assert b"NotADirectoryError" in child.stderr


def test_a_home_of_ones_own_can(home: Path) -> None:
    (Path.home() / ".config").mkdir()
    assert Path(os.environ["XDG_CONFIG_HOME"]) == home / ".config"


def test_soak_runs_a_seeded_part() -> None:
    part = soak_seeds("kill", seed=1, rounds=40, fraction=0.05)
    assert part == soak_seeds("kill", seed=1, rounds=40, fraction=0.05)
    assert len(part) == 2
    assert set(part) < set(soak_seeds("kill", seed=1, rounds=40, fraction=1))
    assert part != soak_seeds("kill", seed=2, rounds=40, fraction=0.05)
    assert len(soak_seeds("kill", seed=1, rounds=1, fraction=0.05)) == 1


def test_soak_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "test_rounds.py").write_text(
        "from pathlib import Path\n"
        "def test_round(soak_seed):\n"
        "    with Path('ran').open('a') as file: file.write(f'{soak_seed}\\n')\n"
        "    assert Path('mended').exists() or soak_seed % 2\n"
    )
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = soak\n gpu\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--soak-state=s"]
    command += ["--soak-rounds=4", "--soak-fraction=1"]
    environment = {**os.environ, "PYTHONPATH": str(TARGET.parent.parent)}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True}
    first = subprocess.run(command, **options, text=True, check=False)
    assert "2 failed, 2 passed" in first.stdout, first.stdout + first.stderr
    (tmp_path / "mended").touch()
    second = subprocess.run(command, **options, text=True, check=False)
    assert "2 passed, 2 deselected" in second.stdout, second.stdout + second.stderr
    assert len((tmp_path / "ran").read_text().split()) == 6


def test_the_plan_schema_is_current() -> None:
    assert TARGET.read_text(encoding="utf-8") == plan_schema()
    assert f'"title": "{Plan.__name__}"' in plan_schema()


def test_every_plan_in_the_docs_can_be_read() -> None:
    blocks = [
        block
        for page in sorted((TARGET.parent).glob("*.md"))
        for block in re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        if '"format": 1' in block
    ]
    assert blocks
    for block in blocks:
        parse_plan(block)


def test_links_between_pages_lead_somewhere() -> None:
    root = TARGET.parent.parent
    for page in [*root.glob("*.md"), *TARGET.parent.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_exit_code_is_documented() -> None:
    page = (TARGET.parent / "cli.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert documented == {0} | {kind.exit_code for kind in error_kinds(TunerError)}


def error_kinds(base: type[TunerError]) -> Iterator[type[TunerError]]:
    yield base
    for kind in base.__subclasses__():
        yield from error_kinds(kind)


@pytest.mark.parametrize(
    ("codes", "code", "called"),
    [
        ((0,), 0, ["run", "get-plan"]),
        ((1, 0), 0, ["run", "run", "get-plan"]),
        ((1, 1, 1), 1, ["run", "run", "run"]),
        ((5,), 5, ["run"]),
    ],
)
def test_the_demo_goes_on_where_a_busy_machine_proved_nothing(
    tmp_path: Path, codes: tuple[int, ...], code: int, called: list[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "codes").write_text("".join(f"{value}\n" for value in codes))
    shutil.copy(Path(__file__).parents[1] / "scripts" / "demo", tmp_path / "scripts")
    tuner = """echo "$1" >>called
        [[ $1 == get-plan ]] && exit
        code=$(head -n 1 codes); sed -i 1d codes; exit "$code\""""
    programs = {"scripts/install": "", ".venv/bin/tuner": tuner, ".venv/bin/python": ""}
    for name, text in programs.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{text}\n")
        program.chmod(0o755)
    ended = subprocess.run(tmp_path / "scripts" / "demo", capture_output=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert (tmp_path / "called").read_text().split() == called
