"""What may import what, seen from a running interpreter; import-linter holds the rest."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import registry
import tuner

ROOT = Path(__file__).resolve().parent.parent
TORCH = {"torch", "torchao", "diffusers", "transformers", "accelerate", "torchmetrics"}
SERVICE = {"fastapi", "starlette", "uvicorn", "httpx2", "psycopg"}
"""Wanted by registries whose URL says so, and by nothing else."""
HEAVY = TORCH | SERVICE | {"alembic", "rich", "apscheduler", "PIL", "numpy"}
READS_THE_ENVIRONMENT = {
    "tuner/config.py",
    "tuner/pipeline/artifacts.py",
    "tuner/pipeline/worker.py",
}
"""The worker is told the number of its event descriptor there; torch its cache's folder."""


def modules_beside_the_pipeline() -> list[str]:
    every = [
        module.name
        for package in (tuner, registry)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return [name for name in every if not name.startswith("tuner.pipeline")]


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Top-level packages in a fresh interpreter's `sys.modules` once `code` has run."""
    code += "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.partition(".")[0] for name in json.loads(child.stdout.splitlines()[-1])}


def test_no_module_beside_the_pipeline_loads_torch() -> None:
    names = modules_beside_the_pipeline()
    assert "tuner.cli.main" in names
    imports = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    assert not loaded_after(imports, *names) & TORCH


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["models"],
        ["history"],
        ["space", "--model", "tiny-flux", "--vram", "2GB"],
        ["doctor"],
        ["model-error"],
        ["profile", "--model", "no-such-model"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_but_the_worker_loads_torch(command: list[str], home: Path) -> None:
    code = "import sys; from tuner.cli.main import run; run(sys.argv[1:])"
    assert not loaded_after(code, *command) & TORCH


def test_fetching_a_plan_loads_nothing_heavy(home: Path) -> None:
    code = "import sys; from tuner.cli.main import run; run(sys.argv[1:])"
    command = ["get-plan", "--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64"]
    assert not loaded_after(code, *command) & HEAVY


def test_the_registry_stands_alone() -> None:
    names = [name for name in modules_beside_the_pipeline() if name.startswith("registry.")]
    imports = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    loaded = loaded_after(imports, *names)
    assert "registry" in loaded
    assert "tuner" not in loaded


def test_a_registry_needs_no_server_to_be_read() -> None:
    names = [
        name
        for name in modules_beside_the_pipeline()
        if name.startswith("registry.") and not name.startswith("registry.server.")
    ]
    assert "registry.http_registry" in names
    imports = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    assert not loaded_after(imports, *names) & {"fastapi", "starlette", "uvicorn", *TORCH}


@pytest.mark.parametrize("command", [["--help"], ["serve", "--help"], ["tokens", "list"]])
def test_commands_are_there_without_the_packages_of_the_service(
    command: list[str], home: Path
) -> None:
    code = "import sys; from tuner.cli.main import run; sys.exit(run(sys.argv[1:]))"
    code = f"for name in {sorted(SERVICE)}: __import__('sys').modules[name] = None\n{code}"
    child = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, check=False, cwd=ROOT
    )
    assert child.returncode == 0, child.stderr


def test_the_public_face_is_what_the_docs_say() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^### `tuner\.(\w+)", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(tuner.__all__)
    for name in tuner.__all__:
        assert getattr(tuner, name).__doc__, f"tuner.{name} has no docstring"


def test_the_public_face_is_lazy() -> None:
    assert not loaded_after("import tuner; dir(tuner)") & HEAVY


def test_configuration_is_read_in_one_place() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for package in ("tuner", "registry")
        for path in (ROOT / package).rglob("*.py")
        if reads_the_environment(path)
    }
    assert readers == READS_THE_ENVIRONMENT


def reads_the_environment(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv", "environb"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(tree)
    )


def test_every_module_has_its_place_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:\w+/)*(\w+(?:\.py|/))`", page))
    there = {
        path.name if path.is_file() else f"{path.name}/"
        for package in ("tuner", "registry")
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert there - {"__init__.py"} <= named, "a module is missing in docs/architecture.md"
    assert named <= there | {
        "tuner/",
        "registry/",
        "migrations/",
        "apply.py",
        "test_architecture.py",
    }
