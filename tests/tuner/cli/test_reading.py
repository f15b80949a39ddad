"""`show`, `history`, `revoke`, `rollback` and `pin` on a real registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.record import ArtifactRef, QualityScore, TuningRecord, WarmStart
from tests.tuner.cli import example_registry as example
from tuner.cli.main import run
from tuner.gate import judge
from tuner.report.records import artifacts_text

Captured = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Shown:
    """A registry with what is in it, and a way to ask the command line about it."""

    path: Path
    study_id: str
    older: str
    newer: str
    capsys: Captured

    def text(self, *command: str, code: int = 0) -> str:
        """Standard output; standard error where the exit code is not 0."""
        assert run([*command, "--registry", str(self.path)]) == code
        printed = self.capsys.readouterr()
        return printed.err if code else printed.out

    def data(self, *command: str) -> Any:
        return json.loads(self.text(*command, "--json"))


@pytest.fixture
def shown(tmp_path: Path, capsys: Captured) -> Shown:
    path = tmp_path / "plans.db"
    _, study_id, (older, newer) = example.make(path)
    return Shown(path, study_id, older, newer, capsys)


def test_a_record_is_shown_beside_its_baseline(shown: Shown) -> None:
    text = shown.text("show", shown.newer[:10])
    for part in (
        shown.newer,
        "tiny-flux (random weights)",
        "int8-wo · regional",
        "2.00× over the baseline",
        "passed balanced (uncalibrated: random weights); worst sqnr_db 38.2",
        "4.00 ms",
        "10.0 ms",
        "850 MB",
        "900 MB",
    ):
        assert part in text


def test_a_study_is_shown_over_a_base_that_cannot_be_read(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_REGISTRY_BASE", str(tmp_path / "nowhere"))
    assert shown.data("show", shown.study_id[:8])["id"] == shown.study_id
    assert "nowhere" in shown.text("show", "f" * 32, code=4)


def test_a_record_as_data_reads_back_as_one(shown: Shown) -> None:
    data = shown.data("show", shown.newer)
    assert (data["kind"], data["id"], data["status"]) == ("record", shown.newer, "current")
    assert TuningRecord.model_validate(data["record"]).id == shown.newer


@pytest.mark.parametrize(
    ("used", "cold_s", "told"),
    [
        ({"graph_hits": 3}, None, "3 of 3 graphs taken"),
        (
            {"function_hits": 3, "library_hits": 18},
            None,
            "3 of 3 functions ahead of time and 18 of 18 libraries taken",
        ),
        (
            {"graph_hits": 3, "library_hits": 18, "library_misses": 1},
            40.0,
            "3 of 3 graphs and 18 of 19 libraries taken; first image 34.5 s sooner",
        ),
        (
            {"graph_hits": 1, "graph_misses": 1},
            5.0,
            "1 of 2 graphs taken; first image 500 ms later",
        ),
    ],
)
def test_a_record_says_what_its_artifacts_saved(
    used: dict[str, int], cold_s: float | None, told: str
) -> None:
    record = example.record("study", example.NOW)
    warm_start = WarmStart(rung="compile_cache", **used)
    times = {"warm_first_image_s": 5.5, "cold_first_image_s": cold_s, "warm_start": warm_start}
    measured = record.measurement.model_copy(update=times)
    ref = ArtifactRef(kind="compile_cache", sha256="0" * 64, size_bytes=2_200_000)
    changed = record.model_copy(update={"measurement": measured, "artifacts": (ref,)})
    assert artifacts_text(changed) == f"compile_cache 2.20 MB; {told}"


def test_a_study_is_shown_with_its_trials(shown: Shown) -> None:
    text = shown.text("show", shown.study_id[:8])
    assert "finished" in text
    assert "2, 1 failed, 6.00 s of measuring" in text
    assert "crashed: segmentation fault <in> & out" in text
    data = shown.data("show", shown.study_id)
    assert (data["kind"], data["id"], len(data["trials"])) == ("study", shown.study_id, 2)


def test_a_rejected_trial_says_the_worst_and_all_only_when_asked(shown: Shown) -> None:
    """Three steps under the threshold are one line; `--verbose` and JSON have every one."""
    scores = tuple(
        QualityScore(
            metric="sqnr_db",
            value=3.0 + step,
            seed=0,
            prompt="a cat",
            shape=example.WORKLOAD.shapes[0],
            step=step,
        )
        for step in range(3)
    )
    quality = judge(scores, "balanced", calibrated=False)
    trial = example.trials()[0].model_copy(update={"quality": quality})
    registry = open_registry(shown.path, create=False)
    study = registry.begin_study(
        "e" * 64,
        model=example.MODEL,
        workload=example.WORKLOAD,
        environment=example.environment(),
        request={},
        now=example.NOW,
    )
    registry.add_trial(study.id, trial)
    brief = " ".join(shown.text("show", study.id).split())
    full = " ".join(shown.text("show", study.id, "--verbose").split())
    assert "sqnr_db 3 at worst, under 15 in 3 of 3 scores" in brief
    assert "step 1" not in brief
    assert all(f"step {step}" in full for step in range(3))
    assert len(shown.data("show", study.id)["trials"][0]["quality"]["reasons"]) == 3


@pytest.mark.parametrize("of", ["study", "record"])
def test_a_report_is_one_page_with_escaped_text(shown: Shown, of: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    name = shown.study_id if of == "study" else shown.newer
    assert shown.text("show", name, "--html", str(page)) == f"wrote {page}\n"
    html = page.read_text()
    assert "segmentation fault &lt;in&gt; &amp; out" in html
    assert "http" not in html
    assert html.count("<circle") == 1


def test_an_id_that_names_nothing(shown: Shown) -> None:
    assert "ffff" in shown.text("show", "ffff", code=4)


def test_history_is_newest_first_with_status(shown: Shown) -> None:
    entries = shown.data("history")
    assert [(item["id"], item["status"]) for item in entries] == [
        (shown.newer, "current"),
        (shown.older, "superseded"),
    ]
    assert len(shown.data("history", "--limit", "1")) == 1
    text = shown.text("history")
    assert text.index(shown.newer[:12]) < text.index(shown.older[:12])


def test_history_says_what_other_versions_did_to_the_step(shown: Shown) -> None:
    assert "Since other versions" not in shown.text("history")
    here = example.environment()
    newer = here.model_copy(update={"runtime": here.runtime.model_copy(update={"torch": "9.9"})})
    slower = example.record("5f3d", example.NOW, step_ms=8.0, proved_on=newer)
    open_registry(shown.path).publish([slower], now=example.NOW)
    text = " ".join(shown.text("history").split())
    assert "2.00× its step" in text
    assert "→ 9.9" in text


def test_history_of_one_model_and_of_studies(shown: Shown) -> None:
    assert shown.data("history", "--model", "sdxl") == []
    assert [study["id"] for study in shown.data("history", "--studies")] == [shown.study_id]
    assert shown.study_id[:12] in shown.text("history", "--studies")


def test_a_local_folder_goes_by_its_own_name(shown: Shown, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "tiny-flux"
    folder.mkdir(parents=True)
    assert len(shown.data("history", "--model", str(folder))) == 2


def test_revoke_takes_out_of_service(shown: Shown) -> None:
    text = shown.text("revoke", shown.newer[:12], "--reason", "grey pictures")
    assert text == f"revoked {shown.newer}: grey pictures\n"
    data = shown.data("show", shown.newer)
    assert (data["status"], data["revoked_reason"]) == ("revoked", "grey pictures")
    assert "revoked: grey pictures" in shown.text("show", shown.newer)


def test_revoke_needs_a_reason(shown: Shown) -> None:
    assert "--reason" in shown.text("revoke", shown.newer, code=2)


def test_rollback_returns_to_the_one_before(shown: Shown) -> None:
    text = shown.text("rollback", shown.newer[:12])
    assert text == f"in service again: {shown.older}\n"
    assert shown.data("show", shown.newer)["status"] == "revoked"
    assert shown.data("show", shown.older)["status"] == "current"
    assert "no version before" in shown.text("rollback", shown.older, code=4)


def test_a_record_is_pinned_and_let_go(shown: Shown) -> None:
    assert shown.text("pin", shown.newer[:12]) == f"pinned: {shown.newer}\n"
    assert "current, pinned" in shown.text("history")
    assert "current, pinned" in shown.text("show", shown.newer)
    assert shown.text("pin", shown.newer[:12], "--remove") == f"no longer pinned: {shown.newer}\n"
    assert not shown.data("show", shown.newer)["pinned"]
    assert "is not pinned" in shown.text("pin", shown.newer, "--remove", code=2)


def test_an_empty_prefix_does_not_match_everything(shown: Shown) -> None:
    assert shown.text("revoke", "", "--reason", "x", code=4)
