"""How long a trial will take, by how long this study's own took."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from registry.record import Measurement, Rung, Trial
from tuner.objective import compile_s
from tuner.search.entry import Entry
from tuner.search.features import trial_cost
from tuner.search.ledger import STEP_RUNGS, Ledger
from tuner.search.prospects import Prospects

TYPICAL_S: Mapping[Rung, float] = {"denoiser": 35.0, "pipeline": 45.0, "replay": 50.0}
"""Of a 12 B denoiser on a data-centre GPU, until this study has its own."""

COMPILED_SHARE: Mapping[Rung, float] = {"denoiser": 1.0, "pipeline": 0.4, "replay": 1.0}
"""Of the time to compile: the pipeline rung finds compiled graphs in the study's cache; a replay
has only what is published, which on a CPU holds no compiled code."""

HOST_LOAD_BYTES_PER_S = 1e9
"""How quickly weights that stay on the host are placed and pinned. On an H200 machine (PCIe 5)
FLUX streamed took 63 and 53 s to load, resident 6 to 10 s."""


class Durations:
    """Expected durations at one moment of a study."""

    def __init__(self, view: Prospects, ledger: Ledger) -> None:
        self._view = view
        self._ledger = ledger

    def expected_s(self, rung: Rung, entry: Entry) -> float:
        """Seconds of a trial of this plan: the median of what each trial of the rung implies,
        else of other rungs' trials, in proportion to the typical durations. Among those a trial
        of the same denoiser says more than all others: compiling it took what it takes."""
        own = self._implied_s(rung, entry)
        if own:
            return median(own)
        ratios = self._ratios(entry, same=True) or self._ratios(entry, same=False)
        return TYPICAL_S[rung] * (median(ratios) if ratios else trial_cost(entry.plan))

    def _ratios(self, entry: Entry, *, same: bool) -> list[float]:
        """What trials of every rung imply over what is typical there."""
        return [
            s / TYPICAL_S[rung]
            for rung in STEP_RUNGS
            for s in self._implied_s(rung, entry, same_denoiser=same)
        ]

    def _implied_s(self, rung: Rung, entry: Entry, *, same_denoiser: bool = False) -> list[float]:
        """What each finished trial of the rung says of this plan's duration there."""
        ended = [(t, t.measurement) for t in self._ledger.at(rung) if t.duration_s > 0]
        return [
            self._scaled_s(rung, trial, measured, entry)
            for trial, measured in ended
            if measured and (not same_denoiser or self._view.runs_alike(trial, entry))
        ]

    def _scaled_s(self, rung: Rung, trial: Trial, measured: Measurement, entry: Entry) -> float:
        """Loading scales with what stays on the host; requests scale with latency, a denoiser trial
        with what is compiled. At the rungs after it compiled graphs are found in a cache."""
        if measured.latency_s is None:
            return trial.duration_s * trial_cost(entry.plan) / trial_cost(trial.plan)
        start_s = max(0.0, measured.start_s - trial.hidden_s)
        spent_s = min(trial.duration_s, start_s + measured.load_s)
        fixed_s = start_s + _load_s(trial, measured, entry)
        requests = (trial.duration_s - spent_s) / measured.latency_s
        first_s = measured.shapes[0].first_call_s if compile_s(trial.plan) else 0.0
        requests = max(0.0, requests - first_s / measured.latency_s)
        requests_s = requests * self._view.latency_s(entry)
        return fixed_s + requests_s + COMPILED_SHARE[rung] * self._compile_s(entry)

    def _compile_s(self, entry: Entry) -> float:
        """The first call of this denoiser where one was timed, else what is typical."""
        typical_s = compile_s(entry.plan)
        timed = self._view.first_timed(entry)
        return max(typical_s, timed.shapes[0].first_call_s) if timed and typical_s else typical_s


def _load_s(trial: Trial, measured: Measurement, entry: Entry) -> float:
    """Of this plan, from a trial of another that kept more or less on the host."""
    if trial.estimate is None:
        return measured.load_s
    more_bytes = entry.estimate.host_bytes - trial.estimate.host_bytes
    least_s = min(measured.load_s, 0.5 * measured.start_s)
    return max(least_s, measured.load_s + more_bytes / HOST_LOAD_BYTES_PER_S)
