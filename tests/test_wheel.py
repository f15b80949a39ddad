"""What a user gets: the built wheel, installed outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tuner.version import __version__

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ["tuner", "registry", "migrations", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    run([*build, str(source)], cwd=source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the wheel.

    It sees the libraries of the running environment through a .pth file (torch alone would be
    gigabytes), and the checkout not at all: .pth files inside that folder are not read.
    """
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], cwd=folder)
    site = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "-qq"]
    run([*pip, "--no-index", "--no-deps", "--ignore-installed", str(wheel)], cwd=folder)
    return folder / "bin"


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def test_the_container_is_built_from_what_the_wheel_is() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert sorted(copied) == sorted([*SHIPPED, "constraints.txt"])


def run(command: list[str], *, cwd: Path) -> str:
    """Standard output."""
    child = child_of(command, cwd=cwd)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout


def published(command: list[str], *, cwd: Path) -> bool:
    """Whether `command`, a tuning run, proved a plan. On a machine whose times are unsteady it may
    end with nothing proved, after its trials, and says that the same command goes on."""
    child = child_of(command, cwd=cwd)
    told = child.stdout + child.stderr
    if child.returncode != 0:
        assert child.returncode == 1, told
        assert re.search(r"[1-9]\d* plans? ran", told), told
        assert "the same command goes on" in told
    return child.returncode == 0


def child_of(command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """PYTHONPATH is left out: it could let the checkout back in."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_every_file_the_code_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("tuner", "registry", "migrations")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - held == set()
    weights = "tuner/catalog/weights/shapes-flux/transformer/diffusion_pytorch_model.safetensors"
    assert weights in held
    assert not any(name.startswith("tests") for name in held)


def test_the_code_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import json, registry, migrations, tuner; print(json.dumps([m.__path__[0] for m in "
    code += "(registry, migrations, tuner)]))"
    folders = json.loads(run([str(installed / "python"), "-c", code], cwd=tmp_path))
    for folder in folders:
        assert Path(folder).is_relative_to(installed.parent)


def test_version_and_models(installed: Path, tmp_path: Path, home: Path) -> None:
    assert __version__ in run([str(installed / "tuner"), "--version"], cwd=tmp_path)
    assert "tiny-flux" in run([str(installed / "tuner"), "models"], cwd=tmp_path)


def test_the_registry_is_made_and_upgraded(installed: Path, tmp_path: Path, home: Path) -> None:
    registry = tmp_path / "registry"
    tuner = [str(installed / "tuner")]
    run([*tuner, "registry", "upgrade", "--registry", str(registry)], cwd=tmp_path)
    assert run([*tuner, "history", "--registry", str(registry), "--json"], cwd=tmp_path)


@pytest.mark.slow
def test_tune_and_fetch(installed: Path, tmp_path: Path, home: Path) -> None:
    where = ["--registry", str(tmp_path / "registry")]
    what = ["--model", "tiny-flux", "--vram", "2GB", "--resolution", "64x64"]
    tuner = [str(installed / "tuner")]
    proved = published([*tuner, "run", *what, *where, "--time-limit", "40s"], cwd=tmp_path)
    answer = json.loads(run([*tuner, "get-plan", *what, *where], cwd=tmp_path))
    assert answer["match"] == ("exact" if proved else "estimated")
    assert answer["plan"]["format"] == 1
