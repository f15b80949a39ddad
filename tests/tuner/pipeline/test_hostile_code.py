"""Compiled code of strangers, on its whole way: nothing is run, nothing written, each is told."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.client import open_registry
from registry.record import ArtifactRef
from registry.signing import SigningKeys
from tests.tuner.hostile import watching
from tests.tuner.test_answers import Asker
from tests.tuner.test_compiled_code import CHANGES, CODE, framed, named, with_index
from tests.tuner.test_torch_cache import GOOD, KEYS_OF_NO_PATH, KEYS_OUTSIDE, torch_cache
from tuner.answers import PlanAnswer
from tuner.app import _use_artifacts
from tuner.compiled_code import MAGIC, CodePart, CompiledCode, pack
from tuner.config import load_settings
from tuner.detect import detect
from tuner.pipeline.artifacts import compile_counters


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self._canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def asker(tmp_path: Path, home: Path) -> Asker:
    path = tmp_path / "plans.db"
    return Asker(path, open_registry(path), detect("cpu").environment)


@pytest.fixture
def own_keys(home: Path) -> SigningKeys:
    return SigningKeys(load_settings().config_dir)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Before anybody listens: imports are heard."""
    assert compile_counters()


@pytest.fixture(autouse=True)
def torch_is_given_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(data: bytes) -> object:
        raise AssertionError(f"torch was given {data[:40]!r}")

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", given)


def published(asker: Asker, data: bytes, keys: SigningKeys | None) -> PlanAnswer:
    """The answer of a registry whose plan comes with `data`."""
    ref = asker.registry.put_artifact("compile_cache", data)
    asker.publish(artifacts=(ref,), keys=keys)
    answer = asker.ask()
    assert answer.artifacts_apply
    return answer


def is_refused(answer: PlanAnswer) -> str:
    """Why. Fails where anything at all was run or written."""
    with watching() as events:
        code = _use_artifacts(answer)
    assert (events, code.rung, len(code.refused)) == ([], "compile", 1)
    assert not answer.settings.compiled_code_dir.exists()
    return code.refused[0]


def hostile_code(canary: Path) -> bytes:
    """Well-formed, with pickles that act and what is said to be a library."""
    poison = pickle.dumps(Payload(canary))
    parts = (
        CodePart("graph", "fxgraph/ab/fabcdefgh/abcdefgh", poison),
        CodePart("autograd_graph", "aotautograd/aabcdefgh/abcdefgh", poison),
        CodePart("library", "ab/cabcdefgh.main.so", b"\x7fELF" + poison),
        CodePart("torch_cache", "torch-cache", torch_cache({"inductor": (("fabc", poison),)})),
        CodePart("function", f"function/{'0' * 64}", poison),
    )
    return pack(CompiledCode(parts))


def of_torch(*entries: tuple[str, str]) -> bytes:
    parts = [torch_cache({kind: ((key, b"x"),)}) for kind, key in entries]
    return pack(CompiledCode(tuple(CodePart("torch_cache", "torch-cache", p) for p in parts)))


def malformed(canary: Path) -> Iterator[bytes]:
    """As the owner of a trusted key could sign them, by mistake or robbed of it."""
    poison = pickle.dumps(Payload(canary))
    kinds = ("graph", "autograd_graph", "library", "torch_cache", "function")
    outside = [str(canary), f"../{canary.name}", "ab/../../x.so"]
    names = [*outside, "./ab/cabcdefgh.so", "ab//x.so", "~", "/", "..", "fxgraph/../../x/y"]
    yield from (named(kind, name) for kind in kinds for name in names)
    yield from (with_index(change) for change in CHANGES.values())
    for key in (*KEYS_OUTSIDE, *KEYS_OF_NO_PATH, str(canary)):
        yield from (of_torch((kind, key)) for kind in ("inductor", "aot_autograd", "autotune"))
    yield from (of_torch((kind, "key")) for kind in ("precompile", "pickle", "", "__reduce__"))
    yield from (poison, torch_cache({"inductor": (("fabc", poison),)}), torch_cache(GOOD))
    yield from (MAGIC + poison, framed(len(poison), poison), framed(0, poison))
    yield from (framed(2**64 - 1, b""), MAGIC.replace(b"1", b"0") + pack(CODE)[len(MAGIC) :])
    yield from (pack(CODE)[len(MAGIC) :], pack(CODE) * 2, b"", bytes(100))
    yield from (b"PK\x03\x04" + poison, b"\x7fELF" + poison)


def test_a_hundred_crafted_files_under_a_trusted_key(
    asker: Asker, own_keys: SigningKeys, canary: Path
) -> None:
    crafted = dict.fromkeys(malformed(canary))
    assert len(crafted) >= 100
    answer = published(asker, b"first", own_keys)
    for data in crafted:
        registry: Any = Signed(data)
        is_refused(replace(answer, registry=registry))
    assert not canary.exists()


class Signed:
    """A registry in which the signature over `data` was found good."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def trusted_artifact(self, *_: object) -> bytes:
        return self._data


def test_a_signed_file_that_is_malformed(asker: Asker, own_keys: SigningKeys) -> None:
    answer = published(asker, torch_cache(GOOD), own_keys)
    assert "not compiled code of a format" in is_refused(answer)


def test_nobody_signed_it(asker: Asker, canary: Path) -> None:
    assert "is not signed" in is_refused(published(asker, hostile_code(canary), None))


def test_a_stranger_signed_it(asker: Asker, canary: Path, tmp_path: Path) -> None:
    answer = published(asker, hostile_code(canary), SigningKeys(tmp_path / "stranger"))
    assert "not trusted here" in is_refused(answer)


def test_a_key_was_revoked(
    asker: Asker, own_keys: SigningKeys, canary: Path, tmp_path: Path
) -> None:
    """What was unpacked while it was trusted lies in a folder that is not used any more."""
    stranger = SigningKeys(tmp_path / "stranger")
    answer = published(asker, hostile_code(canary), stranger)
    own_keys.trust("a colleague", stranger.public_key.public_key)
    trusted = answer.code_folder
    assert answer.trusted_bytes(ref_of(answer)) == hostile_code(canary)
    own_keys.revoke("a colleague")
    assert "not trusted here" in is_refused(answer)
    assert answer.code_folder != trusted


def ref_of(answer: PlanAnswer) -> ArtifactRef:
    assert answer.stored is not None
    return answer.stored.record.artifacts[0]


@pytest.mark.parametrize("moved", ["weights", "architecture"])
def test_it_was_signed_for_another_record(
    asker: Asker, own_keys: SigningKeys, canary: Path, moved: str
) -> None:
    answer = published(asker, hostile_code(canary), own_keys)
    assert answer.stored is not None
    record = answer.stored.record
    key = record.key.model_copy(update={moved: "0" * 64})
    other = answer.stored.model_copy(update={"record": record.model_copy(update={"key": key})})
    assert is_refused(replace(answer, answer=replace(answer.answer, record=other)))
    assert not canary.exists()


def test_the_hostile_pickles_would_act(canary: Path) -> None:
    """The canary can sing: otherwise its silence would prove nothing."""
    with watching() as events:
        pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.is_dir()
    assert [event.split(":")[0] for event in events if "import" not in event] == [
        "pickle.find_class",
        "os.mkdir",
    ]
