"""A study as one self-contained HTML page: no scripts, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from registry.record import Trial
from tuner.labels import describe
from tuner.report import fronts
from tuner.report.layers import HEADER, layer_rows
from tuner.report.plot import Line, Point, scatter
from tuner.report.text import mark, outcome, predicted_step
from tuner.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from registry.studies import StudyRow

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #d8dee4;
  vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { width: 100%; height: auto; font-size: 12px } svg text { fill: #59636e }
.grid { stroke: #eaeef2 } .budget { stroke: #cf222e; stroke-dasharray: 4 4 }
.denoiser { fill: #9ec5fe } .pipeline { fill: #0969da } .replay { fill: #1a7f37 }
.blocks { fill: #d8dee4 } .rejected { fill: #cf222e }
"""


def study_page(study: StudyRow, trials: Sequence[Trial]) -> str:
    """The whole page. Text from the registry is escaped: a record may come from a stranger."""
    title = f"{study.model.name} at {study.workload.label}"
    parts = (
        f"<h1>{escape(title)}</h1>",
        facts_table(_facts(study, trials)),
        "<h2>Speed against memory</h2>",
        plot(trials, _budget(study.request)),
        *front_html(study.summary or {}),
        "<h2>Trials</h2>",
        trials_html(trials),
        *layers_html(study.summary or {}),
    )
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def layers_html(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """What autoquant decided, if it did."""
    return _section("Layer by layer", HEADER, layer_rows(summary))


def front_html(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The plans that no other beats in speed and quality, where there are several."""
    return _section(fronts.TITLE, fronts.HEADER, fronts.front_rows(summary))


def _section(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """A heading and a table; nothing without rows."""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{name}</th>" for name in header)
    made = f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
    return (f"<h2>{title}</h2>", made) if body else ()


def _facts(study: StudyRow, trials: Sequence[Trial]) -> Iterator[tuple[str, str]]:
    hardware, runtime = study.environment.hardware, study.environment.runtime
    failed = sum(trial.failure is not None for trial in trials)
    yield "Study", f"{study.id} ({study.status})"
    yield "Started", f"{study.started_at:%Y-%m-%d %H:%M}Z"
    yield "Device", f"{hardware.name}, {format_bytes(hardware.vram_bytes)}"
    driver = f", driver {runtime.driver}" if runtime.driver else ""
    yield "Versions", f"torch {runtime.torch}, torchao {runtime.torchao}{driver}"
    yield "Trials", f"{len(trials)}, {failed} failed"
    yield "Measured time", format_seconds(sum(trial.duration_s for trial in trials))


def facts_table(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs
    )
    return f"<table>{rows}</table>"


def plot(trials: Iterable[Trial], budget_bytes: int | None) -> str:
    """Every measured trial: peak memory across, time of a step up. A budget far beyond all of them
    is left out: it would press the points together."""
    points = [point for trial in trials if (point := _point(trial)) is not None]
    line = None
    if budget_bytes is not None and points and budget_bytes / 1e9 < max(p.x for p in points) * 2:
        line = Line(budget_bytes / 1e9, f"budget {format_bytes(budget_bytes)}")
    return scatter(points, x_label="peak device memory, GB", y_label="one step, ms", line=line)


def _point(trial: Trial) -> Point | None:
    if trial.measurement is None:
        return None
    rejected = trial.failure is not None or (trial.quality and not trial.quality.passed)
    return Point(
        x=trial.measurement.memory.peak_vram_bytes / 1e9,
        y=trial.measurement.step_ms,
        kind="rejected" if rejected else trial.rung,
        note=f"{describe(trial.plan)} ({trial.rung}): {outcome(trial)}",
    )


def _budget(request: Mapping[str, Any]) -> int | None:
    budget = request.get("budget_bytes")
    return budget if isinstance(budget, int) else None


def trials_html(trials: Iterable[Trial]) -> str:
    header = "<th></th><th>Rung</th><th>Plan</th><th>Outcome</th><th class='n'>Predicted step</th>"
    rows = "".join(_trial_row(trial) for trial in trials)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"


def _trial_row(trial: Trial) -> str:
    predicted = predicted_step(trial.estimate)
    cells = (mark(trial), trial.rung, describe(trial.plan), outcome(trial))
    tds = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr>{tds}<td class='n'>{escape(predicted)}</td></tr>"
