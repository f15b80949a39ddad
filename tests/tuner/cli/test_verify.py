"""`tuner verify`: what it prints of each verdict, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.record import Quality
from registry.records import StoredRecord
from registry.verification import Verification
from tests.tuner.cli import example_registry as example
from tuner.cli import verifier
from tuner.cli.main import run
from tuner.verifying import Verified
from tuner.workplace import Workplace

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def record(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of one in the user's own registry."""
    monkeypatch.setenv("TUNER_REGISTRY", str(home / "plans.db"))
    _, _, (_, newer) = example.make(home / "plans.db")
    return newer


def ending(
    *problems: str, monkeypatch: pytest.MonkeyPatch, unclear: bool = False
) -> Callable[..., Verified]:
    def verify(place: Workplace, stored: StoredRecord, *_: Any, share: bool) -> Verified:
        found = Verification(
            record=stored.record.id,
            study="5f3c",
            verified_at=example.NOW,
            latency_s=0.03,
            problems=problems,
        )
        if not unclear:
            place.registry.note_verification(found)
        return Verified(
            record=stored.record,
            study="5f3c",
            verification=None if unclear else found,
            changes=("torch: 2.14 here, 2.13 when proved",),
            baseline=example.measurement(11.0, 0.06, 1_100_000_000),
            now=example.measurement(6.0, 0.03, 850_000_000),
            quality=Quality(
                policy="balanced", passed=True, calibrated=True, worst={"ssim": 0.9}, scores=()
            ),
            notes=("share was asked for",) if share else (),
        )

    monkeypatch.setattr(verifier, "verify_record", verify)
    return verify


def test_what_holds_is_shown_beside_what_was_published(
    record: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    ending(monkeypatch=monkeypatch)
    assert run(["verify", record[:12], "--gpu", "cpu", "--share"]) == 0
    printed = capsys.readouterr().out
    for part in ("6.00 ms", "25.0 ms", "30.0 ms", "2.00×", "passed balanced"):
        assert part in printed
    assert "other than when proved: torch: 2.14 here, 2.13 when proved" in printed
    assert "note: share was asked for" in printed
    assert f"Holds: record {record[:12]} does what it says" in printed
    assert run(["show", record]) == 0
    assert "held 2026-11-23" in capsys.readouterr().out


def test_what_drifted_is_told_and_ends_with_1(
    record: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    ending("latency 0.03 s, was 0.025 s", monkeypatch=monkeypatch)
    assert run(["verify", record, "--gpu", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert f"Drifted: record {record[:12]}" in printed
    assert "  latency 0.03 s, was 0.025 s" in printed
    assert run(["show", record]) == 0
    assert "drifted, 2026-11-23 12:00Z: latency 0.03 s" in capsys.readouterr().out


def test_what_could_not_be_told_ends_with_1_and_keeps_nothing(
    record: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    ending(monkeypatch=monkeypatch, unclear=True)
    assert run(["verify", record, "--gpu", "cpu", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["verdict"], data["problems"]) == ("unclear", [])
    assert data["now"]["shapes"][0]["latency_s"] == 0.03
    assert run(["show", record]) == 0
    assert "never run again" in capsys.readouterr().out


def test_stopped_it_says_nothing_of_the_record(
    record: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def stop(*_: Any, **__: Any) -> Verified:
        raise KeyboardInterrupt

    monkeypatch.setattr(verifier, "verify_record", stop)
    assert run(["verify", record, "--gpu", "cpu"]) == 130
    assert f"nothing is said of record {record[:12]}" in capsys.readouterr().err


def test_a_record_that_is_not_there(record: str, capsys: Captured) -> None:
    assert run(["verify", "abcdef", "--gpu", "cpu"]) == 4
    assert "there is no record abcdef" in capsys.readouterr().err
