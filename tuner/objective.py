"""What "better" means: one number of seconds for a plan, lower is better.

- latency: prompt to picture, the workload's weighted mean;
- throughput: seconds per picture, batches counted;
- first-image: start of the process to the first picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from registry.plan import ComponentPlan, Plan
from registry.record import Estimate, Measurement, Objective, ShapeMeasurement
from registry.workload import Workload

COMPILE_S = {"none": 0.0, "regional": 15.0, "whole": 100.0}
AUTOTUNE_FACTOR = 5.0
"""Prior of what compiling adds to the first picture, until the first trials say better."""

MAD_FACTOR = 3.0
"""Two results closer than this many median absolute deviations are equal."""


@dataclass(frozen=True)
class Score:
    """`value_s` lower is better; results within `spread_s` of each other are equal."""

    value_s: float
    spread_s: float = 0.0

    def beats(self, other: Score) -> bool:
        """Better by more than the noise of either."""
        return self.value_s < other.value_s - max(self.spread_s, other.spread_s)


@dataclass(frozen=True)
class Judge:
    """Scores plans for one objective, workload and number of denoising steps."""

    objective: Objective
    workload: Workload
    steps: int

    def estimated(self, plan: Plan, estimate: Estimate) -> float:
        """Seconds predicted before anything ran."""
        if self.objective == "first-image":
            return estimate.latency_s + compile_s(plan)
        return estimate.latency_s / self._images

    def projected(self, measured: Measurement, estimate: Estimate) -> Score:
        """Seconds of a request: the measured steps, and what the estimate has beside them."""
        beside_s = max(0.0, estimate.latency_s - self.steps * estimate.step_ms / 1000)
        if self.objective == "first-image":
            return Score(start_up_s(measured) + beside_s)
        spread_s = self.steps * _mean(measured, lambda item: item.step_ms_mad) / 1000
        return self._score(beside_s + self.steps * measured.step_ms / 1000, spread_s)

    def measured(self, measured: Measurement) -> Score | None:
        """Seconds of whole requests; None where only steps were timed."""
        if measured.latency_s is None:
            return None
        if self.objective == "first-image":
            cold_s = measured.cold_first_image_s
            return Score(start_up_s(measured) if cold_s is None else cold_s)
        return self._score(measured.latency_s, _mean(measured, _latency_mad_s))

    def _score(self, latency_s: float, mad_s: float) -> Score:
        return Score(latency_s / self._images, MAD_FACTOR * mad_s / self._images)

    @property
    def _images(self) -> float:
        """Pictures a mean request makes, where they count."""
        if self.objective != "throughput":
            return 1.0
        shapes = self.workload.shapes
        weighted = sum(shape.batch_size * shape.weight for shape in shapes)
        return weighted / sum(shape.weight for shape in shapes)


def compile_s(plan: Plan) -> float:
    """Prior of the seconds that the plan's compilation adds to the first picture."""
    return max((_compile_s(item) for item in plan.pipeline.components.values()), default=0.0)


def start_up_s(measured: Measurement) -> float:
    """Start of the process to the end of its first request."""
    return measured.start_s + measured.load_s + _mean(measured, lambda item: item.first_call_s)


def latency_mad_s(measured: Measurement) -> float:
    """Median absolute deviation of whole requests, the shapes' weighted mean."""
    return _mean(measured, _latency_mad_s)


def _compile_s(component: ComponentPlan) -> float:
    compilation = component.compilation
    factor = AUTOTUNE_FACTOR if compilation.mode.startswith("max-autotune") else 1.0
    return COMPILE_S[compilation.scope] * factor


def _latency_mad_s(item: ShapeMeasurement) -> float:
    if not item.latency_samples_s:
        return 0.0
    centre = median(item.latency_samples_s)
    return median(abs(sample - centre) for sample in item.latency_samples_s)


def _mean(measured: Measurement, value: Callable[[ShapeMeasurement], float]) -> float:
    total = sum(item.shape.weight for item in measured.shapes)
    return sum(value(item) * item.shape.weight for item in measured.shapes) / total
