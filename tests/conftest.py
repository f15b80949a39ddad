"""What every test gets: no way to the real home, and the gpu and soak switches."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import zlib
from functools import partial
from pathlib import Path

import pytest

from tests import cached_compiler

# Before anything imports torch: tiny models are many times slower on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HOME_VARIABLES = {
    "HOME": ".",
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "HF_HOME": "hf",
}


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home is a file: whatever is kept there by default raises instead of being written."""
    nowhere = tmp_path / "no-home"
    nowhere.write_text("a test that needs a home asks for the fixture `home`")
    for name, folder in HOME_VARIABLES.items():
        monkeypatch.setenv(name, os.path.normpath(nowhere / folder))
    variables = ("TUNER_HOME", "TUNER_REGISTRY", "TUNER_REGISTRY_BASE", "TUNER_REGISTRY_TOKEN")
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def home(no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the test's own, seen by its child processes too."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name, inside in HOME_VARIABLES.items():
        monkeypatch.setenv(name, os.path.normpath(folder / inside))
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soak", "long fault tests")
    group.addoption(
        "--soak-fraction", type=float, default=0.05, help="share of the soak rounds to run"
    )
    group.addoption("--soak-rounds", type=int, default=20, help="rounds of each soak test")
    group.addoption("--soak-seed", type=int, default=0, help="seed of the rounds")
    group.addoption("--soak-state", type=Path, help="folder that remembers rounds that passed")


def pytest_configure(config: pytest.Config) -> None:
    # A suite in the background of a shell inherits an ignored Ctrl-C, and hands it on to every
    # child that a test means to stop with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="compiled-"))
        config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))
        cached_compiler.install(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    state = config.getoption("--soak-state")
    if state is not None:
        config.pluginmanager.register(SoakState(state), "soak-state")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `soak_seed` runs once a round, each with its own seed."""
    if "soak_seed" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    seeds = soak_seeds(
        metafunc.function.__qualname__,
        seed=option("--soak-seed"),
        rounds=option("--soak-rounds"),
        fraction=option("--soak-fraction"),
    )
    metafunc.parametrize("soak_seed", seeds)


def soak_seeds(name: str, *, seed: int, rounds: int, fraction: float) -> list[int]:
    """The rounds to run, at least one; the same for the same arguments."""
    base = zlib.crc32(f"{seed}:{name}".encode())
    every = [base + number for number in range(rounds)]
    keep = max(1, round(rounds * fraction))
    return sorted(random.Random(base).sample(every, min(keep, rounds)))


def pytest_itemcollected(item: pytest.Item) -> None:
    if "soak_seed" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.soak)
    if item.get_closest_marker("gpu") and not has_cuda_device():
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests begin, so that no worker of several is left with one at the end."""
    marks = ("slow", "soak")
    slow = {item.path for item in items if any(map(item.get_closest_marker, marks))}
    items.sort(key=lambda item: item.path not in slow)


def has_cuda_device() -> bool:
    """Looked up in /dev: importing torch here would cost every run three seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


class SoakState:
    """Remembers each round that passed, so that an interrupted soak goes on where it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        passed = [item for item in items if self._mark(item.nodeid).exists()]
        items[:] = [item for item in items if item not in passed]
        config.hook.pytest_deselected(items=passed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._mark(report.nodeid).touch()

    def _mark(self, nodeid: str) -> Path:
        return self._folder / f"{zlib.crc32(nodeid.encode()):08x}"
