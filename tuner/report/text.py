"""One-line texts about trials, plans and figures, shared by every view."""

from __future__ import annotations

from registry.record import Estimate, Measurement, Trial
from tuner.gate import rejection
from tuner.units import format_bytes, format_seconds


def figures(measurement: Measurement) -> str:
    """ "101 ms a step, 3.2 s a request, peak 14.2 GB"; the request only where one was timed."""
    parts = [f"{format_seconds(measurement.step_ms / 1000)} a step"]
    if measurement.latency_s is not None:
        parts.append(f"{format_seconds(measurement.latency_s)} a request")
    parts.append(f"peak {format_bytes(measurement.memory.peak_vram_bytes)}")
    return ", ".join(parts)


def predicted_step(estimate: Estimate | None) -> str:
    """ "101 ms by blocks": the step's time and what it was predicted from."""
    if estimate is None:
        return "–"
    return f"{format_seconds(estimate.step_ms / 1000)} by {estimate.source}"


def outcome(trial: Trial, *, verbose: bool = False) -> str:
    """How a trial ended, in one line: figures, the failure, or why it was dropped. `verbose` has
    every score that a policy refused."""
    if trial.measurement is not None:
        return figures(trial.measurement) + _verdict(trial, verbose=verbose) + _audited(trial)
    if trial.failure is not None:
        kind, message = trial.failure.kind.replace("_", " "), first_line(trial.failure.message)
        return f"{kind}: {message}{_audited(trial)}"
    return f"not tried: {trial.dropped or 'no reason was kept'}"


def mark(trial: Trial) -> str:
    """ "✓" measured, "✗" failed or rejected, "–" not tried."""
    if trial.measurement is None:
        return "✗" if trial.failure is not None else "–"
    return "✗" if trial.failure or (trial.quality and not trial.quality.passed) else "✓"


def first_line(message: str, width: int = 160) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "no message"
    return line if len(line) <= width else line[: width - 1] + "…"


def _verdict(trial: Trial, *, verbose: bool) -> str:
    quality = trial.quality
    if quality is None or quality.passed:
        return ""
    reasons = quality.reasons if verbose else rejection(quality)
    return f"; rejected by the {quality.policy} policy: {'; '.join(reasons)}"


def _audited(trial: Trial) -> str:
    return "" if trial.dropped is None else f"; an audit of: {trial.dropped}"
