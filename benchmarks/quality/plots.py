"""Distributions of each metric by treatment, as one small picture. Needs the extra [bench]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.scores import CALIBRATED_METRICS, Results
from benchmarks.quality.treatments import TREATMENTS, Kind
from registry.record import Policy
from tuner.policies import CALIBRATED, Metric

TITLES: dict[Metric, str] = {
    "sqnr_db": "SQNR of the worst step, dB",
    "embedding_sqnr_db": "SQNR of the worst embedding, dB",
    "psnr_gain_db": "PSNR over that of another seed, dB",
}
COLOURS: dict[Kind, str] = {
    "yardstick": "#888888",
    "noise": "#1b9e77",
    "fine": "#66a61e",
    "coarse": "#7570b3",
    "lossy": "#e6ab02",
    "harm": "#d95f02",
    "cached": "#1f78b4",
}
CAP_DB = 50.0
"""Drawn there: equal results have no finite ratio."""
LINES: dict[Policy, str] = {"strict": ":", "balanced": "-", "fast": "--"}


def plot(found: Results, path: Path) -> None:
    """Every held-out picture a point; thresholds as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in TREATMENTS if name in found.rows][::-1]
    figure, panels = plt.subplots(1, 3, figsize=(12, 7), sharey=True, layout="constrained")
    for panel, metric in zip(panels, CALIBRATED_METRICS, strict=True):
        _panel(panel, found, metric, names)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=90)


def _panel(panel: Any, found: Results, metric: Metric, names: list[str]) -> None:
    for row, name in enumerate(names):
        values = [min(value, CAP_DB) for value in found.values(name, metric)]
        heights = [row + 0.3 * ((7 * index) % 11 / 5 - 1) for index in range(len(values))]
        colour = COLOURS[TREATMENTS[name].kind]
        panel.plot(values, heights, ".", color=colour, markersize=3, alpha=0.6)
    for policy, style in LINES.items():
        least = CALIBRATED[policy][metric]
        panel.axvline(least, color="black", linestyle=style, linewidth=1, label=policy)
    panel.set_title(TITLES[metric], fontsize=10)
    panel.grid(axis="x", alpha=0.3)
