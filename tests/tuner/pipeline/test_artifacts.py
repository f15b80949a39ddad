"""Compiled code that one process leaves and another starts with."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from registry.client import open_registry
from registry.environment import Environment
from registry.errors import UntrustedArtifact
from registry.record import WarmStart
from registry.signing import SigningKeys
from tests.tuner.hostile import watching
from tests.tuner.test_answers import Asker
from tests.tuner.test_torch_cache import GOOD, torch_cache
from tuner.app import _use_artifacts
from tuner.compiled_code import CodePart, CompiledCode, pack, unpack
from tuner.config import load_settings
from tuner.detect import detect
from tuner.pipeline.artifacts import (
    UnusableArtifact,
    compile_counters,
    load_compiled_code,
    save_compiled_code,
    use_compiled_code,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CHILD = "tests.tuner.pipeline.compiled_child"
WARM = WarmStart(rung="compile_cache", graph_hits=1, library_hits=1)
OF_TORCH = pack(CompiledCode((CodePart("torch_cache", "torch-cache", torch_cache(GOOD)),)))


OTHERS = (
    "fxgraph/zz/fzzzzzzzzzzz/abcdefghijk",
    "aotautograd/azzzzzzzzzzz/abcdefghijk",
    "zz/czzzzzzzzzzz.main.so",
)
"""Of other trials, in the folder that a study's trials share."""


def started(what: str, path: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", CHILD, what, str(path), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> bytes:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return said


def users(paths: Sequence[Path], folders: Sequence[Path]) -> list[WarmStart]:
    """What processes took that were started at once."""
    running = [started("use", *pair) for pair in zip(paths, folders, strict=True)]
    return [WarmStart.model_validate_json(ended(process)) for process in running]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by a process that compiled a function."""
    root = tmp_path_factory.mktemp("saved")
    for name in OTHERS:
        (root / "compile" / name).parent.mkdir(parents=True)
        (root / "compile" / name).write_bytes(b"another trial's")
    ended(started("save", root / "code.bin", root / "compile"))
    return root / "code.bin"


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a test sets here is undone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What torch was given. It takes what holds something."""
    seen: list[bytes] = []

    def record(data: bytes) -> object:
        seen.append(data)
        return object() if data == torch_cache(GOOD) else None

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", record)
    return seen


def test_only_what_a_process_used_is_taken(saved: Path) -> None:
    parts = unpack(saved.read_bytes()).parts
    assert not {part.name for part in parts} & set(OTHERS)
    kinds = [part.kind for part in parts]
    assert (kinds.count("graph"), kinds.count("autograd_graph")) == (1, 1)
    assert "library" in kinds


def test_a_library_that_is_missing_is_counted(saved: Path, tmp_path: Path) -> None:
    """Inductor finds its graph, and says nothing of the libraries that it compiles for it."""
    code = unpack(saved.read_bytes())
    graphs = tuple(part for part in code.parts if not part.name.endswith(".main.so"))
    (tmp_path / "graphs.bin").write_bytes(pack(CompiledCode(graphs, code.compiler)))
    (used,) = users([tmp_path / "graphs.bin"], [tmp_path / "code"])
    assert used == WarmStart(rung="compile_cache", graph_hits=1, library_misses=1)
    assert used.saves_nothing


def libraries(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.so")}


def test_fresh_processes_start_at_once_and_compile_nothing(
    saved: Path, tmp_path: Path, soak_seed: int, request: pytest.FixtureRequest
) -> None:
    """Whoever is first, each file is whole; one that was damaged is put right. Eight of them in a
    full soak, as each imports torch; two in the suite."""
    count = 8 if request.config.getoption("--soak-fraction") == 1 else 2
    folder = tmp_path / "code"
    folder.mkdir(mode=0o700)
    parts = unpack(saved.read_bytes()).parts
    broken = folder / parts[soak_seed % len(parts)].name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half")
    assert users([saved] * count, [folder] * count) == [WARM] * count
    assert all((folder / part.name).read_bytes() == part.data for part in parts)
    assert libraries(folder) == {part.name for part in parts if part.kind == "library"}
    assert folder.stat().st_mode & 0o777 == 0o700


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    """A bit turned, or the end gone."""
    chance = random.Random(count)
    for number in range(count):
        at = chance.randrange(len(data))
        turned = bytes([data[at] ^ 1 << chance.randrange(8)])
        yield data[:at] if number % 4 == 0 else data[:at] + turned + data[at + 1 :]


def test_a_thousand_damaged_files_are_refused(saved: Path, tmp_path: Path, home: Path) -> None:
    """In a registry, and where a signature would have been found good."""
    asker = Asker(tmp_path / "plans.db", open_registry(tmp_path / "plans.db"), here())
    ref = asker.registry.put_artifact("compile_cache", saved)
    asker.publish(artifacts=(ref,), keys=SigningKeys(load_settings().config_dir))
    kept, answer = asker.registry.artifact_path(ref), asker.ask()
    for data in damaged(saved.read_bytes(), 1000):
        kept.write_bytes(data)
        with watching() as events:
            code = _use_artifacts(answer)
            names = names_in(data)
        assert (events, code.rung, len(code.refused)) == ([], "compile", 1)
        assert all(not name.startswith("/") and ".." not in name for name in names)
    assert not answer.settings.compiled_code_dir.exists()


def here() -> Environment:
    return detect("cpu").environment


def names_in(data: bytes) -> list[str]:
    """None, but where a turned bit made one good name of another."""
    try:
        return [part.name for part in unpack(data).parts]
    except UntrustedArtifact:
        return []


def test_another_compiler_command_makes_it_useless(saved: Path, tmp_path: Path) -> None:
    code = unpack(saved.read_bytes())
    elsewhere = pack(CompiledCode(code.parts, compiler="0" * 64))
    with pytest.raises(UnusableArtifact, match="another compiler command"):
        use_compiled_code(elsewhere, tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_a_folder_that_others_enter_is_not_used(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir(mode=0o755)
    with pytest.raises(UntrustedArtifact, match="not this user's alone"):
        use_compiled_code(saved.read_bytes(), tmp_path / "code")
    assert list((tmp_path / "code").iterdir()) == []


def test_torchs_own_cache_is_given_to_torch(tmp_path: Path, given: list[bytes]) -> None:
    assert use_compiled_code(OF_TORCH, tmp_path / "code").counted().saves_nothing
    assert given == [torch_cache(GOOD)]


def test_a_cache_that_torch_refuses(tmp_path: Path, given: list[bytes]) -> None:
    empty = pack(CompiledCode((CodePart("torch_cache", "torch-cache", torch_cache({})),)))
    with pytest.raises(UnusableArtifact, match="torch did not take it"):
        use_compiled_code(empty, tmp_path / "code")


@pytest.mark.parametrize("bad", [OF_TORCH[:-1] + b"x", b"", OF_TORCH + b"and more"])
def test_other_bytes_than_the_signed_ones_never_reach_torch(
    tmp_path: Path, given: list[bytes], bad: bytes
) -> None:
    path, digest = tmp_path / "code.bin", hashlib.sha256(OF_TORCH).hexdigest()
    path.write_bytes(bad)
    with pytest.raises(UntrustedArtifact, match=rf"code\.bin has digest .* is for {digest}"):
        load_compiled_code(path, digest, tmp_path / "code")
    assert given == []
    path.write_bytes(OF_TORCH)
    load_compiled_code(path, digest, tmp_path / "code")
    assert given == [torch_cache(GOOD)]


def test_on_a_gpu_the_cache_is_as_torch_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = (torch_cache(GOOD), object())
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: saved)
    path = tmp_path / "code.bin"
    assert save_compiled_code(path, tmp_path, CUDA) == len(OF_TORCH)
    assert path.read_bytes() == OF_TORCH


def test_a_cache_of_an_unknown_kind_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be refused wherever it is used."""
    saved = (torch_cache({"novel": (("key", b""),)}), object())
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: saved)
    with pytest.raises(UntrustedArtifact, match="unknown kind"):
        save_compiled_code(tmp_path / "code.bin", tmp_path, CUDA)
    assert not (tmp_path / "code.bin").exists()


def test_nothing_compiled_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert save_compiled_code(tmp_path / "code.bin", tmp_path, CPU) == 0
    assert not (tmp_path / "code.bin").exists()


def test_counters_count_graphs_and_breaks() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert set(compile_counters().values()) == {0}

    def broken(value: torch.Tensor) -> torch.Tensor:
        value = value + 1
        torch._dynamo.graph_break()
        return value * 2

    torch.compile(broken, backend="eager")(torch.ones(2))
    counted = compile_counters()
    assert counted["graphs"] == 2
    assert counted["graph_breaks"] == 1
    torch._dynamo.reset()
