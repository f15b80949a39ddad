"""torchao's old autoquant cache: what it says is taken, and nothing in it is ever run."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.errors import InvalidInput
from tests.registry.samples import HARDWARE
from tests.tuner import legacy_caches
from tests.tuner.legacy_caches import AUTOQUANT
from tuner.detect import detect
from tuner.legacy_autoquant import LEGACY_RUNTIME, SCHEMES, LegacyCache, read_legacy_cache
from tuner.legacy_pickle import MAX_BYTES, read_pickled_entries

ROOT = Path(__file__).parents[2]
FLIPS = 300


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    return legacy_caches.make(tmp_path_factory.mktemp("legacy"))


def times(cache: LegacyCache) -> dict[tuple[tuple[int, ...], str], float | None]:
    return {(item.key.shape, item.key.scheme): item.median_ms for item in cache.timings}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_real_cache_is_read(caches: dict[int, bytes], protocol: int) -> None:
    cache = read_legacy_cache(caches[protocol], HARDWARE)
    assert times(cache) == {
        ((4096, 3072, 12288), "none"): 2.25,
        ((4096, 3072, 12288), "int8_dynamic"): 1.5,
        ((4096, 3072, 12288), "int8_weight_only"): 2.5,
        ((512, 3072, 9216), "none"): 0.25,
        ((512, 3072, 9216), "int8_dynamic"): 0.125,
        ((512, 3072, 9216), "int8_weight_only"): None,
    }
    assert cache.unknown == {"AQInt4G64WeightOnlyQuantizedLinearWeight": 2}
    assert (cache.malformed, cache.untimed) == (0, 2)


def test_what_is_taken_proves_nothing(caches: dict[int, bytes]) -> None:
    cache = read_legacy_cache(caches[4], HARDWARE)
    assert {item.outcome for item in cache.timings} == {"noisy", "failed"}
    assert {item.key.runtime for item in cache.timings} == {LEGACY_RUNTIME.digest}
    assert detect("cpu").environment.runtime.digest != LEGACY_RUNTIME.digest
    assert {(item.key.hardware, item.key.bias) for item in cache.timings} == {
        (HARDWARE.digest, True)
    }


def test_every_class_of_the_old_releases_is_known_or_named(tmp_path: Path) -> None:
    strangers = [
        "AQGemliteInt4G64WeightOnlyQuantizedLinearWeight",
        "AQInt8DynamicallyQuantizedSemiSparseLinearWeight",
        "AQFloat32LinearWeight",
    ]
    names = [*SCHEMES, *strangers, "AQBFloat16LinearWeight"]
    made = legacy_caches.make(
        tmp_path / "all",
        [
            (f"{AUTOQUANT}{name}", 64 + number, 32, 16, False, "bfloat16", 1.5)
            for number, name in enumerate(names)
        ],
    )
    cache = read_legacy_cache(made[4], HARDWARE)
    found = {item.key.shape[0] - 64: item.key.scheme for item in cache.timings}
    assert found == {
        number: SCHEMES.get(name, "none")
        for number, name in enumerate(names)
        if name not in strangers
    }
    assert cache.unknown == dict.fromkeys(strangers, 1)


def test_infinity_and_nothing_are_failures(tmp_path: Path) -> None:
    made = legacy_caches.make(
        tmp_path / "failed",
        [
            (f"{AUTOQUANT}AQDefaultLinearWeight", rows, 32, 16, False, "float16", value)
            for rows, value in ((1, "inf"), (2, None), (3, "nan"), (4, "-1"), (5, "0"), (6, "2.5"))
        ],
    )
    cache = read_legacy_cache(made[4], HARDWARE)
    outcomes = {item.key.shape[0]: item.outcome for item in cache.timings}
    assert outcomes == {1: "failed", 2: "failed", 6: "noisy"}
    assert (cache.malformed, cache.untimed) == (3, 1)


def test_a_cache_with_nothing_usable_is_refused(tmp_path: Path) -> None:
    entry = (f"{AUTOQUANT}AQStrange", 8, 8, 8, True, "bfloat16", 1.0)
    with pytest.raises(InvalidInput, match="1 entries of unknown classes"):
        read_legacy_cache(legacy_caches.make(tmp_path / "none", [entry])[4], HARDWARE)


def test_a_class_from_elsewhere_refuses_the_file(tmp_path: Path) -> None:
    entry = ("own.AQMine", 8, 8, 8, True, "bfloat16", 1.0)
    with pytest.raises(InvalidInput, match=r"own\.AQMine"):
        read_legacy_cache(legacy_caches.make(tmp_path / "own", [entry])[4], HARDWARE)


# Hostile files. `touch CANARY` is what each of them would do.

CANARY = "canary"


class Reduces:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {CANARY}",)


class SetsState:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Exception, (), {"__setstate__": Reduces()})


def nested(levels: int) -> bytes:
    """A tuple of two of the tuple before, and so on: tiny here, 2**levels when walked."""
    body = b")\x94" + b"".join(
        (b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94") for n in range(levels)
    )
    return b"\x80\x04}" + body + b"G" + struct.pack(">d", 1.0) + b"s."


HOSTILE: dict[str, bytes] = {
    "reduce": pickle.dumps({Reduces(): 1.0}, protocol=4),
    "reduce as a value": pickle.dumps({"key": Reduces()}, protocol=2),
    "setstate": pickle.dumps({"key": SetsState()}, protocol=4),
    "global and reduce": b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.",
    "posix": b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0dopen('canary','w')\x85R.",
    "inst": b"\x80\x02(X\x0c\x00\x00\x00touch canaryios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\nX\x0c\x00\x00\x00touch canaryo.",
    "newobj": b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85\x81.",
    "newobj_ex": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85}\x92.",
    "build": b"\x80\x02ctorch\nSize\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "a class that is called": b"\x80\x02ctorchao.quantization\nautoquant\n)R.",
    "a dtype that is called": b"\x80\x02ctorch\nbfloat16\n)R.",
    "torch.load": b"\x80\x02ctorch\nload\nX\x06\x00\x00\x00canary\x85R.",
    "torch.hub": b"\x80\x02ctorch.hub\nload\nX\x06\x00\x00\x00canary\x85R.",
    "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x10Size.__class__.x\x93)R.",
    "a size of no tuple": b"\x80\x02ctorch\nSize\nK\x01\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02X\x06\x00\x00\x00canaryQ.",
    "persistent text": b"\x80\x02Pcanary\n.",
    "next buffer": b"\x80\x05\x97.",
    "huge long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x00.",
    "negative long": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "long of 255 bytes": b"\x80\x02}\x8a\xff" + b"\x7f" * 255 + b"K\x01s.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x.",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "long text": b"\x80\x02X" + struct.pack("<I", 10_000) + b"x" * 10_000 + b".",
    "nested tuples": nested(60),
    "far memo": b"\x80\x02}j\xff\xff\xff\xff.",
    "memo never made": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02\x85.",
    "mark alone": b"\x80\x02(.",
    "a mark that is kept": b"\x80\x04(\x94}h\x00K\x01s.",
    "marks in a tuple": b"\x80\x02(\x85.",
    "no dictionary": b"\x80\x02K\x01.",
    "a list": b"\x80\x02]K\x01a.",
    "two values": b"\x80\x02}}.",
    "a dictionary in itself": b"\x80\x04}\x94K\x01h\x00s.",
    "odd items": b"\x80\x02}(K\x01u.",
    "items of nothing": b"\x80\x02(K\x01K\x02u.",
    "memoize for ever": b"\x80\x04}" + b"\x94" * 1_100_000 + b".",
    "pop": b"\x80\x02}K\x010.",
    "dup": b"\x80\x02}2.",
    "old text": b"\x80\x02S'canary'\n.",
    "old number": b"\x80\x02I" + b"9" * 10_000 + b"\n.",
    "old long": b"\x80\x02L" + b"9" * 10_000 + b"L\n.",
    "old dictionary": b"\x80\x02(d.",
    "empty": b"",
    "start alone": b"\x80",
    "an unknown protocol's instruction": b"\x80\x06\xff.",
    "an empty cache": pickle.dumps({}, protocol=4),
    "too many bytes": b"\x80\x04" + b"}" * MAX_BYTES,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_legacy_cache(HOSTILE[name], HARDWARE)
    assert len(raised.value.message) < 1000


WATCHED = """
import os, pathlib, struct, sys
sys.path.insert(0, os.environ["ROOT"])
import pickle
from registry.environment import Hardware
from registry.errors import InvalidInput
from tuner.legacy_autoquant import read_legacy_cache
from tuner.legacy_pickle import read_pickled_entries

hardware = Hardware.model_validate_json(sys.argv[1])
files = [path.read_bytes() for path in sorted(pathlib.Path("files").iterdir())]
before = set(sys.modules)
events = []
harmless = {"object.__getattr__", "code.__new__", "sys._getframe", "gc.collect"}

def watch(event, arguments):
    if watching and event not in harmless:
        events.append((event, repr(arguments)[:200]))

watching = False
sys.addaudithook(watch)
refused = taken = 0
for data in files:
    watching = True
    try:
        read_legacy_cache(data, hardware)
        taken += 1
    except InvalidInput:
        refused += 1
    finally:
        watching = False
print(refused, taken)
print(sorted(set(events)))
print(sorted(set(sys.modules) - before))
"""


def watched(folder: Path, files: list[bytes]) -> tuple[int, int]:
    """How many of `files` are refused and taken, in a process in which every open file, import,
    subprocess and compilation is an audit event; there must be none."""
    (folder / "files").mkdir()
    for number, data in enumerate(files):
        (folder / "files" / f"{number:04}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, HARDWARE.model_dump_json()],
        cwd=folder, env={**os.environ, "ROOT": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts, events, modules = done.stdout.splitlines()
    assert (events, modules) == ("[]", "[]")
    assert not (folder / CANARY).exists()
    refused, taken = counts.split()
    return int(refused), int(taken)


def test_nothing_hostile_is_run(tmp_path: Path) -> None:
    assert watched(tmp_path, list(HOSTILE.values())) == (len(HOSTILE), 0)


def test_the_hostile_files_would_run_if_they_were_unpickled(tmp_path: Path) -> None:
    """The canary can sing: otherwise its silence would prove nothing."""
    (tmp_path / "bad.pkl").write_bytes(HOSTILE["stack global"])
    code = "import pickle; pickle.load(open('bad.pkl', 'rb'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / CANARY).exists()


def test_flipped_bits_crash_nothing_and_run_nothing(
    caches: dict[int, bytes], tmp_path: Path
) -> None:
    flips = random.Random(20261123)
    files = []
    for _ in range(FLIPS):
        data = bytearray(caches[flips.choice([2, 3, 4, 5])])
        data[flips.randrange(len(data))] ^= 1 << flips.randrange(8)
        files.append(bytes(data))
    refused, taken = watched(tmp_path, files)
    assert refused + taken == FLIPS
    assert refused > 0


def test_every_truncation_is_refused(caches: dict[int, bytes], tmp_path: Path) -> None:
    data = caches[4]
    files = [data[:length] for length in range(0, len(data), 5)]
    assert watched(tmp_path, files) == (len(files), 0)


def test_random_instructions_crash_nothing(tmp_path: Path) -> None:
    """Programs of the pickle machine that no pickler ever wrote."""
    chooser = random.Random(7)
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    files = []
    for _ in range(FLIPS):
        length = chooser.randrange(1, 60)
        body = b"".join(
            chooser.choice(codes) + bytes(chooser.randrange(8) for _ in range(chooser.randrange(3)))
            for _ in range(length)
        )
        files.append(b"\x80\x04" + body + b".")
    refused, taken = watched(tmp_path, files)
    assert (refused, taken) == (FLIPS, 0)


def test_entries_come_as_plain_values(caches: dict[int, bytes]) -> None:
    key, value = read_pickled_entries(caches[2])[0]
    assert [str(key[0]), key[1], str(key[4])] == [
        f"{AUTOQUANT}AQDefaultLinearWeight", (4096, 3072), "torch.bfloat16",
    ]  # fmt: skip
    assert value == 2.25
