"""The rule that makes thresholds of the calibration set, and what they do to the held-out one.

For each metric:

- `spread`: the largest standard deviation between pictures of one plan-like treatment (int8,
  float8, 4 bits).
- `H`: what 99 of 100 harmless pictures are over, less the doubt about a single picture.
- `D`: what 99 of 100 pictures of the damage that the metric tells are under. It tells a damage that
  lies under `H` so. For PSNR's gain at least 0: a picture no closer than another seed's is another.
- `strict`: `H` of bf16 noise and int8 weight-only alone.
- `balanced`: a quarter of the way from `D` to `H` of every harmless treatment. Not halfway: large
  models' float8 scores lower than this small one's, their damage does not score higher.
- `fast`: what 4 bits everywhere still reach as `H`, where that was measured; at most `D`.

No threshold is lower than that of random weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles, stdev

from benchmarks.quality.rows import Row
from benchmarks.quality.scores import CALIBRATED_METRICS, YARDSTICK, Results
from benchmarks.quality.treatments import TREATMENTS, Kind, of_kind
from registry.record import Policy
from tuner.confidence import Z_95
from tuner.policies import POLICIES, Metric

CAP_DB = 60.0
"""Of equal results, whose ratio is infinite."""
FROM_DAMAGE = 0.25
PLAN_LIKE: tuple[Kind, ...] = ("fine", "coarse", "lossy")
POLICY_NAMES: tuple[Policy, ...] = ("strict", "balanced", "fast")
PICTURES_A_PLAN = 4


@dataclass(frozen=True)
class Rule:
    """Of one metric, in dB. `told` are the damages that it tells."""

    metric: Metric
    spread: float
    strict: float
    balanced: float
    fast: float
    told: tuple[str, ...]


def rules(calibration: Results) -> tuple[Rule, ...]:
    return tuple(_rule(calibration, metric) for metric in CALIBRATED_METRICS)


def _rule(calibration: Results, metric: Metric) -> Rule:
    spread = round(max(_spreads(calibration, metric)), 1)
    doubt = Z_95 * spread

    def least(*kinds: Kind) -> float:
        return min(_low(calibration.values(name, metric)) for name in of_kind(*kinds)) - doubt

    harmless = least("noise", "fine", "coarse")
    told = tuple(_told(calibration, metric, harmless))
    damage = max(_high(calibration.values(name, metric)) for name in (*told, *_yardstick(metric)))
    return Rule(
        metric=metric,
        spread=spread,
        strict=_at_least("strict", metric, least("noise", "fine")),
        balanced=_at_least("balanced", metric, damage + FROM_DAMAGE * (harmless - damage)),
        fast=_at_least("fast", metric, min(damage, least("lossy"))),
        told=told,
    )


def _at_least(policy: Policy, metric: Metric, value: float) -> float:
    return round(max(value, POLICIES[policy].get(metric, value)), 1)


def _yardstick(metric: Metric) -> tuple[str, ...]:
    return (YARDSTICK,) if metric == "psnr_gain_db" else ()


def _spreads(calibration: Results, metric: Metric) -> Iterator[float]:
    for name in of_kind(*PLAN_LIKE):
        values = [min(value, CAP_DB) for value in calibration.values(name, metric)]
        yield stdev(values)


def _told(calibration: Results, metric: Metric, harmless: float) -> Iterator[str]:
    for name in of_kind("harm"):
        values = calibration.values(name, metric)
        if values and _high(values) < harmless:
            yield name


def _low(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[0]


def _high(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[-1]


@dataclass(frozen=True)
class Verdicts:
    """Of one treatment: how many of `pictures` pass alone, and how many of `plans` groups."""

    treatment: str
    pictures: int
    plans: int
    passed_alone: tuple[int, ...]
    passed_as_plan: tuple[int, ...]


def verdicts(found: Results) -> tuple[Verdicts, ...]:
    """By the policies as they stand in `tuner.policies`."""
    return tuple(_verdicts(found, name) for name in TREATMENTS if name in found.rows)


def _verdicts(found: Results, treatment: str) -> Verdicts:
    rows = found.rows[treatment]
    plans = [
        rows[start : start + PICTURES_A_PLAN] for start in range(0, len(rows), PICTURES_A_PLAN)
    ]

    def passed(groups: Iterable[Sequence[Row]], policy: Policy) -> int:
        return sum(found.passes(group, policy) for group in groups)

    return Verdicts(
        treatment,
        len(rows),
        len(plans),
        tuple(passed([[row] for row in rows], policy) for policy in POLICY_NAMES),
        tuple(passed(plans, policy) for policy in POLICY_NAMES),
    )


def rules_text(found: Iterable[Rule]) -> str:
    """As a table of Markdown."""
    lines = ["| metric | strict | balanced | fast | spread | tells |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{item.metric}` | {item.strict:g} | {item.balanced:g} | {item.fast:g} "
        f"| {item.spread:g} | {', '.join(item.told)} |"
        for item in found
    ]
    return "\n".join(lines)


def verdicts_text(found: Iterable[Verdicts], results: Results) -> str:
    """As a table of Markdown: passes under each policy, alone and as plans of four pictures. Step
    caches have a table of their own (`caches`)."""
    lines = [
        "| treatment | kind | strict | balanced | fast | balanced, as plans | fidelity |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in found:
        if TREATMENTS[item.treatment].kind == "cached":
            continue
        alone = " | ".join(f"{count}/{item.pictures}" for count in item.passed_alone)
        shares = results.fidelity(item.treatment)
        lines.append(
            f"| {item.treatment} | {TREATMENTS[item.treatment].kind} | {alone} "
            f"| {item.passed_as_plan[1]}/{item.plans} | {sum(shares) / len(shares):.3f} |"
        )
    return "\n".join(lines)
