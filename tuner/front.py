"""Speed against quality: the plans of a study that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from registry.plan import Plan
from registry.record import Quality, Trial

Measure = Literal["psnr_gain_db", "sqnr_db"]


@dataclass(frozen=True)
class Place:
    """One plan of the front. `quality_db` is the mean of `measure` over pictures, or its worst
    value for random weights; both are None for the reference itself, nearest of all. `passed` is
    the policy's verdict, `published` whether the plan may be had."""

    plan: str
    label: str
    latency_s: float
    speedup: float
    measure: Measure | None = None
    quality_db: float | None = None
    passed: bool = True
    published: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def front_of(
    trials: Iterable[Trial],
    baseline: Trial,
    published: Collection[str],
    label: Callable[[Plan], str],
) -> tuple[Place, ...]:
    """From the fastest to the reference. Plans whose whole requests were timed, refused ones too:
    they show what more speed would have cost. `published` are digests of plans."""
    others = (trial for trial in trials if trial.plan != baseline.plan)
    scored = ((trial, trial.quality and closeness(trial.quality)) for trial in others)
    places = [_place(trial, baseline, found, label) for trial, found in scored if found]
    places = [*(place for place in places if place.latency_s), _reference(baseline, label)]
    return tuple(replace(item, published=item.plan in published) for item in _undominated(places))


def _place(
    trial: Trial, baseline: Trial, found: tuple[Measure, float], label: Callable[[Plan], str]
) -> Place:
    latency_s = _latency_s(trial)
    return Place(
        plan=trial.plan.digest,
        label=label(trial.plan),
        latency_s=latency_s,
        speedup=_latency_s(baseline) / latency_s if latency_s else 0.0,
        measure=found[0],
        quality_db=found[1],
        passed=trial.quality is not None and trial.quality.passed,
    )


def _reference(baseline: Trial, label: Callable[[Plan], str]) -> Place:
    return Place(baseline.plan.digest, label(baseline.plan), _latency_s(baseline), 1.0)


def closeness(quality: Quality) -> tuple[Measure, float] | None:
    """How near the pictures are to the reference's, in dB, and by what measure."""
    gains = [item.value for item in quality.scores if item.metric == "psnr_gain_db"]
    if quality.calibrated and gains:
        return "psnr_gain_db", fmean(gains)
    worst = quality.worst.get("sqnr_db")
    return None if worst is None else ("sqnr_db", worst)


def _undominated(places: Iterable[Place]) -> tuple[Place, ...]:
    kept: list[Place] = []
    for place in sorted(places, key=lambda item: (item.latency_s, -_height(item))):
        if all(_height(place) > _height(faster) for faster in kept):
            kept.append(place)
    return tuple(kept)


def _height(place: Place) -> float:
    return float("inf") if place.quality_db is None else place.quality_db


def _latency_s(trial: Trial) -> float:
    """Of whole requests at the pipeline rung; 0 where none were timed."""
    if trial.rung != "pipeline" or trial.measurement is None:
        return 0.0
    return trial.measurement.latency_s or 0.0
