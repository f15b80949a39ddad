"""What was tried here speaks against giving a plan out by prediction alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.client import open_registry
from registry.digest import short
from registry.record import Failure, Quality, Trial
from registry.store import Registry
from tests.tuner.cli import example_registry as example
from tuner.experience import MOST_NOTES, Experience
from tuner.matching import Request

MB = 10**6
HERE = example.environment()
ELSEWHERE = example.environment(driver="580.1")
ASKED = Request(
    model=example.MODEL,
    workload=example.WORKLOAD,
    budget_bytes=900 * MB,
    architecture="a" * 64,
)
LOST = Quality(policy="fast", passed=True, calibrated=False, worst={}, scores=())


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path / "plans.db")


def tried(registry: Registry, *, minutes: int = 0, where: Any = HERE, **changes: Any) -> None:
    """One trial of WINNER in a study of its own."""
    given = {"budget_bytes": changes.pop("given", 2000 * MB), "command": changes.pop("by", "run")}
    now = example.NOW + timedelta(minutes=minutes)
    study = registry.begin_study(
        f"study {minutes}",
        model=changes.pop("model", example.MODEL),
        workload=changes.pop("workload", example.WORKLOAD),
        environment=where,
        request=given,
        now=now,
    )
    measured = example.measurement(5.0, 0.025, changes.pop("peak_bytes", 850 * MB))
    measured = measured.model_copy(update={"contaminated": changes.pop("contaminated", None)})
    fields: dict[str, Any] = {"rung": "pipeline", "measurement": measured, "started_at": now}
    if "failure" in changes:
        fields["measurement"] = None
        changes["failure"] = Failure(kind=changes["failure"], message="said the worker")
    registry.add_trial(study.id, Trial(plan=example.WINNER, **{**fields, **changes}))


def against(registry: Registry, **changes: Any) -> str | None:
    request = Request(**{**ASKED.__dict__, **changes})
    return Experience(registry, request, HERE).against(example.WINNER)


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ({"peak_bytes": 950 * MB}, "measured here it needs 950 MB, over the 900 MB given"),
        ({"peak_bytes": 950 * MB, "rung": "replay"}, "it needs 950 MB"),
        ({"failure": "out_of_memory"}, "it ran out of memory here within 2.00 GB"),
        ({"failure": "crashed"}, "it failed here: said the worker"),
        ({"failure": "unsupported"}, "it failed here: said the worker"),
        ({"failure": "error"}, "it failed here: said the worker"),
        ({"failure": "rejected_quality"}, "its picture did not meet the policy balanced here"),
        (
            {"quality": LOST.model_copy(update={"passed": False})},
            "its picture did not meet the policy balanced here",
        ),
    ],
    ids=str,
)
def test_a_bad_word_of_this_machine_counts(
    registry: Registry, trial: dict[str, Any], reason: str
) -> None:
    tried(registry, **trial)
    assert reason in (against(registry) or "")


@pytest.mark.parametrize(
    "trial",
    [
        {},
        {"peak_bytes": 950 * MB, "rung": "denoiser"},
        {"peak_bytes": 950 * MB, "contaminated": "others held 2.0 GB"},
        {"peak_bytes": 950 * MB, "by": "profile"},
        {"peak_bytes": 950 * MB, "where": ELSEWHERE},
        {"failure": "out_of_memory", "given": 800 * MB},
        {"failure": "timeout"},
        {"failure": "timing"},
        {
            "failure": "rejected_quality",
            "model": example.MODEL.model_copy(update={"weights": "pretrained"}),
        },
        {"failure": "crashed", "model": example.MODEL.model_copy(update={"name": "sdxl"})},
    ],
    ids=str,
)
def test_what_says_nothing_of_the_question_does_not(
    registry: Registry, trial: dict[str, Any]
) -> None:
    tried(registry, **trial)
    assert against(registry) is None


def test_the_newest_study_has_the_word(registry: Registry) -> None:
    tried(registry, failure="crashed")
    assert against(registry) is not None
    tried(registry, minutes=1)
    assert against(registry) is None


def test_a_revoked_plan_is_not_given_out_by_prediction(registry: Registry) -> None:
    record = example.record("study", example.NOW)
    registry.publish([record], now=example.NOW)
    assert against(registry) is None
    registry.revoke(record.id, reason="green faces", now=example.NOW)
    expected = f"record {short(record.id)} of it was revoked: green faces"
    assert against(registry) == expected
    assert against(registry, architecture="c" * 64) is None


def test_notes_name_the_first_few(registry: Registry) -> None:
    tried(registry, failure="crashed")
    experience = Experience(registry, ASKED, HERE)
    for _ in range(MOST_NOTES + 2):
        experience.against(example.WINNER)
    assert len(experience.notes) == MOST_NOTES + 1
    assert experience.notes[0].startswith(
        f"plan {short(example.WINNER.digest)} left out: it failed"
    )
    assert experience.notes[-1] == "and 2 more plans that were tried here"
