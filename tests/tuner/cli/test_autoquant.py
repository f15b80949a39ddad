"""`tuner autoquant`: what is listed, and that a registry's timings can move to another."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from tests.registry import samples
from tests.tuner import legacy_caches
from tuner.cli.main import run
from tuner.detect import detect
from tuner.timing_file import TIMING_FORMAT
from tuner.version import __version__

Captured = pytest.CaptureFixture[str]
OTHER = samples.environment(torch="2.14.0", name="NVIDIA H200")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two timings of a CPU, one that failed there, and one of another device."""
    made = tmp_path / "plans.db"
    registry = open_registry(made)
    here = [samples.timing(1), samples.timing(2), samples.timing(3, "failed")]
    registry.put_timings(here, now=samples.NOW, environment=samples.ENVIRONMENT)
    registry.put_timings([samples.timing(place=OTHER)], now=samples.NOW, environment=OTHER)
    return made


def autoquant(path: Path, *options: str, code: int = 0) -> None:
    assert run(["autoquant", *options, "--registry", str(path)]) == code


def exported(path: Path, *options: str) -> Path:
    file = path.with_suffix(".json")
    autoquant(path, "export", str(file), *options)
    return file


def test_list_counts_by_device_and_outcome(path: Path, capsys: Captured) -> None:
    autoquant(path, "list", "--json")
    groups = {group["hardware_name"]: group for group in json.loads(capsys.readouterr().out)}
    assert groups["test CPU"]["outcomes"] == {"measured": 2, "failed": 1}
    assert groups["test CPU"]["kinds"] == {"linear": 3}
    assert groups["NVIDIA H200"]["runtime_name"] == "torch 2.14.0, torchao 0.18.0"
    autoquant(path, "list")
    told = capsys.readouterr().out
    assert "NVIDIA H200" in told
    assert "1 failed, 2 measured" in told


@pytest.mark.parametrize(
    ("wanted", "count"),
    [("h200", 1), ("test", 1), (OTHER.hardware.digest[:8], 1), ("A100", 0)],
)
def test_list_of_one_device(path: Path, capsys: Captured, wanted: str, count: int) -> None:
    autoquant(path, "list", "--json", "--hardware", wanted)
    assert len(json.loads(capsys.readouterr().out)) == count


def test_nothing_to_list(tmp_path: Path, capsys: Captured) -> None:
    open_registry(tmp_path / "empty.db")
    autoquant(tmp_path / "empty.db", "list")
    assert capsys.readouterr().out == "no timings\n"


def test_an_export_says_where_its_timings_were_taken(path: Path, capsys: Captured) -> None:
    autoquant(path, "export", "-", "--hardware", "H200")
    printed = capsys.readouterr()
    file = json.loads(printed.out)
    assert (file["format"], file["producer"]) == (TIMING_FORMAT, {"tuner": __version__})
    (entry,) = file["timings"]
    key = entry["timing"]["key"]
    assert file["hardware"][key["hardware"]]["name"] == "NVIDIA H200"
    assert file["runtime"][key["runtime"]]["torch"] == "2.14.0"
    assert len(file["hardware"]) == 1
    assert printed.err == "1 timings written\n"


def test_another_registry_takes_all_of_it_once(path: Path, capsys: Captured) -> None:
    file, other = exported(path), path.with_name("other.db")
    capsys.readouterr()
    autoquant(other, "import", str(file))
    autoquant(other, "import", str(file))
    assert capsys.readouterr().out.splitlines() == [
        "4 new, 0 better, 0 already there",
        "0 new, 0 better, 4 already there",
    ]
    ours, theirs = open_registry(path), open_registry(other)
    assert theirs.all_timings() == ours.all_timings()
    assert theirs.timing_places() == ours.timing_places()
    assert theirs.check() == []


def test_what_was_measured_elsewhere_is_better_than_a_failure(path: Path, capsys: Captured) -> None:
    other = path.with_name("other.db")
    failed = [samples.timing(1, "failed"), samples.timing(3)]
    open_registry(other).put_timings(failed, now=samples.later(5))
    file = exported(path)
    capsys.readouterr()
    autoquant(other, "import", str(file), "--json")
    assert json.loads(capsys.readouterr().out) == {"new": 2, "better": 1, "same": 1}
    found = open_registry(other).timings([samples.timing_key(1), samples.timing_key(3)])
    assert {item.timing.outcome for item in found.values()} == {"measured"}


Damage = Callable[[dict[str, Any]], object]
FUTURE = (datetime.now(UTC) + timedelta(days=400)).isoformat()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file["timings"][2]["timing"].pop("outcome"), "timings[2].timing.outcome"),
        (
            lambda file: file["timings"][1]["timing"].update(median_ms=-1),
            "timings[1].timing.median",
        ),
        (lambda file: file["timings"][0].update(timed_at=FUTURE), "timings[0].timed_at"),
        (lambda file: file["timings"][0].update(timed_at="2026-01-01T00:00:00"), "timings[0]"),
        (lambda file: file["timings"][3]["timing"]["key"].update(scheme="int3"), "timings[3]"),
        (lambda file: file["timings"][3]["timing"]["key"].update(hardware="x"), "key.hardware"),
        (lambda file: file["timings"][3].update(extra=1), "timings[3].extra"),
        (lambda file: file["hardware"].update({"0" * 64: samples.HARDWARE.model_dump()}), "0000"),
        (lambda file: file.pop("timings"), "timings"),
        (lambda file: file.update(format=TIMING_FORMAT + 1), "format 2"),
        (lambda file: file.update(format="1"), "format"),
        (lambda file: file.update(format=0), "format"),
        (lambda file: file.pop("format"), "format"),
    ],
    ids=range(13),
)
def test_a_bad_entry_is_named_and_nothing_is_taken(
    path: Path, capsys: Captured, damage: Damage, told: str
) -> None:
    file, other = exported(path), path.with_name("other.db")
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    autoquant(other, "import", str(file), code=2)
    assert told in capsys.readouterr().err
    assert not other.exists()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff\xfe", b'{"format": NaN}', b"PK\3\4"]
)
def test_a_file_of_another_kind_is_refused(path: Path, capsys: Captured, data: bytes) -> None:
    file = path.with_name("other.json")
    file.write_bytes(data)
    autoquant(path, "import", str(file), code=2)
    assert "not a file of timings" in capsys.readouterr().err


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    legacy_caches.make(tmp_path / "legacy")
    return tmp_path / "legacy" / "protocol-4.pkl"


def test_a_legacy_cache_needs_to_know_its_machine(
    path: Path, legacy: Path, capsys: Captured
) -> None:
    autoquant(path, "import", str(legacy), code=2)
    assert "--assume-this-machine" in capsys.readouterr().err
    assert len(open_registry(path).all_timings()) == 4


def test_a_legacy_cache_is_taken_as_this_machines(
    path: Path, legacy: Path, capsys: Captured
) -> None:
    options = ("import", str(legacy), "--assume-this-machine", "--gpu", "cpu")
    autoquant(path, *options)
    told = capsys.readouterr().out
    assert told.startswith("6 new, 0 better, 0 already there\n")
    assert "2 of AQInt4G64WeightOnlyQuantizedLinearWeight" in told
    assert "prove nothing" in told
    autoquant(path, *options, "--json")
    again = json.loads(capsys.readouterr().out)
    assert (again["new"], again["same"], again["proves_nothing"]) == (0, 6, True)
    here = detect("cpu").environment
    registry = open_registry(path)
    assert len(registry.all_timings(hardware=here.hardware.digest)) == 6
    assert registry.all_timings(runtime=here.runtime.digest) == ()
    assert registry.timing_places().hardware[here.hardware.digest] == here.hardware


def test_a_legacy_cache_that_calls_something_is_refused(path: Path, capsys: Captured) -> None:
    canary = path.with_name("canary")
    text = f"touch {canary}".encode()
    bad = path.with_name("bad.pkl")
    bad.write_bytes(
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    )
    autoquant(path, "import", str(bad), "--assume-this-machine", "--gpu", "cpu", code=2)
    assert "os.system" in capsys.readouterr().err
    assert not canary.exists()


def test_the_assumption_is_for_legacy_caches_alone(path: Path, capsys: Captured) -> None:
    autoquant(path, "import", str(exported(path)), "--assume-this-machine", code=2)
    assert "quantization-cache.pkl" in capsys.readouterr().err


def test_without_a_registry_nothing_is_listed_or_made(tmp_path: Path, capsys: Captured) -> None:
    nowhere = tmp_path / "nowhere.db"
    autoquant(nowhere, "list", code=4)
    autoquant(nowhere, "export", str(tmp_path / "file.json"), code=4)
    assert not nowhere.exists()
    assert not (tmp_path / "file.json").exists()
