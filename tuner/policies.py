"""What each policy accepts, as data. docs/quality.md says what the numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from registry.record import Policy

Metric = Literal["sqnr_db", "embedding_sqnr_db", "psnr_db", "psnr_gain_db", "ssim", "lpips"]

POLICIES: Mapping[Policy, Mapping[Metric, float]] = {
    "strict": {
        "sqnr_db": 30.0,
        "embedding_sqnr_db": 28.0,
        "psnr_db": 28.0,
        "ssim": 0.90,
        "lpips": 0.10,
    },
    "balanced": {
        "sqnr_db": 15.0,
        "embedding_sqnr_db": 15.0,
        "psnr_db": 18.0,
        "ssim": 0.65,
        "lpips": 0.30,
    },
    "fast": {
        "sqnr_db": 10.0,
        "embedding_sqnr_db": 10.0,
        "psnr_db": 14.0,
        "ssim": 0.45,
        "lpips": 0.50,
    },
}
"""The worst value each policy accepts of a single score: a minimum, for LPIPS a maximum. First
settings, from one-step errors of FLUX with random weights (int8 weight-only 35 to 40 dB, fp8 per
row 20 to 30 dB, three-bit rounding under 10 dB); of the picture metrics they are floors alone."""

CALIBRATED: Mapping[Policy, Mapping[Metric, float]] = {
    "strict": {"sqnr_db": 30.6, "embedding_sqnr_db": 38.5, "psnr_gain_db": 13.5},
    "balanced": {"sqnr_db": 20.9, "embedding_sqnr_db": 15.0, "psnr_gain_db": 7.7},
    "fast": {"sqnr_db": 10.0, "embedding_sqnr_db": 10.0, "psnr_gain_db": -1.5},
}
"""Of trained weights: what the mean over pictures must surely be over. Printed by
`python -m benchmarks.quality thresholds` from the calibration set."""

SPREAD: Mapping[Metric, float] = {
    "sqnr_db": 1.0,
    "embedding_sqnr_db": 0.7,
    "psnr_gain_db": 3.9,
}
"""Standard deviation between pictures of one treatment, the largest of the calibration set: a few
pictures of a trial cannot show less doubt than this."""

CACHING: frozenset[Policy] = frozenset({"balanced", "fast"})
"""Policies that admit plans which do not compute every step, if their pictures pass."""

LOWER_IS_BETTER: frozenset[Metric] = frozenset({"lpips"})
UNCALIBRATED_METRICS: frozenset[Metric] = frozenset({"sqnr_db", "embedding_sqnr_db"})
"""All that random weights can be held to: their pictures are noise."""
REQUIRED: Metric = "sqnr_db"


def least(policy_name: Policy, metric: Metric, *, calibrated: bool) -> float:
    """What a policy asks of trained (`calibrated`) or of random weights."""
    table = CALIBRATED if calibrated and metric in SPREAD else POLICIES
    return table[policy_name][metric]
