"""Times a trial's requests: the first of each shape apart, then as often as the rung asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median

from registry.record import ShapeMeasurement
from registry.workload import Shape
from tuner.pipeline.request import Requests
from tuner.pipeline.timing import RequestTimes, median_and_mad

WARM_STEPS = 2

Keep = Callable[[Shape, tuple[str, int], RequestTimes], None]
"""Called after each request with its shape, its prompt and seed, and what came of it."""


def warm_up(requests: Requests, *, decode: bool) -> list[RequestTimes]:
    """The first request of each shape, of WARM_STEPS steps; then, where there are several shapes,
    each again: a new shape may have made torch compile for dynamic ones."""
    output = "pt" if decode else "latent"

    def run(shape: Shape) -> RequestTimes:
        return requests.run(
            shape, requests.pairs[0], "compile", steps=WARM_STEPS, output_type=output
        )

    first = [run(shape) for shape in requests.shapes]
    if len(requests.shapes) > 1:
        for shape in requests.shapes:
            run(shape)
    return first


def first_image_s(first: RequestTimes, measured: ShapeMeasurement, steps: int) -> float:
    """The first request as if it had had `steps` steps; all but its first steps are alike."""
    return first.latency_s + (steps - WARM_STEPS) * measured.step_ms / 1000.0


def time_denoiser(
    requests: Requests, first: Sequence[RequestTimes], steps: int
) -> tuple[ShapeMeasurement, ...]:
    """Step times of one request of each shape, its picture left undecoded."""
    return tuple(
        _steps_of(requests, shape, call, steps)
        for shape, call in zip(requests.shapes, first, strict=True)
    )


def _steps_of(
    requests: Requests, shape: Shape, first: RequestTimes, steps: int
) -> ShapeMeasurement:
    count = max(WARM_STEPS, steps)
    times = requests.run(shape, requests.pairs[0], "steps", steps=count, output_type="latent")
    step_ms, spread = median_and_mad(list(times.step_ms))
    return ShapeMeasurement(
        shape=shape,
        steps=count,
        step_ms=step_ms,
        step_ms_mad=spread,
        first_call_s=first.latency_s,
        encode_s=times.encode_s,
    )


def time_requests(
    requests: Requests, first: Sequence[RequestTimes], repeats: int, keep: Keep
) -> tuple[ShapeMeasurement, ...]:
    """Whole requests, the shapes taken in turn so that drift of the clocks hits all alike."""
    found: dict[Shape, list[RequestTimes]] = {shape: [] for shape in requests.shapes}
    for repeat in range(repeats):
        pair = requests.pairs[repeat % len(requests.pairs)]
        for shape, times in found.items():
            done = requests.run(shape, pair, "images")
            keep(shape, pair, done)
            times.append(replace(done, images=None, embeddings=()))
    return tuple(
        _summary(requests, shape, call, found[shape])
        for shape, call in zip(requests.shapes, first, strict=True)
    )


def _summary(
    requests: Requests, shape: Shape, first: RequestTimes, times: Sequence[RequestTimes]
) -> ShapeMeasurement:
    gaps = [gap for item in times for gap in item.step_ms]
    if requests.caches_steps:
        gaps = [fmean(item.step_ms) for item in times if item.step_ms]
    if not gaps:
        gaps = [_steps_of(requests, shape, first, WARM_STEPS).step_ms]
    step_ms, spread = median_and_mad(gaps)
    samples = tuple(item.latency_s for item in times)
    return ShapeMeasurement(
        shape=shape,
        steps=requests.steps,
        step_ms=step_ms,
        step_ms_mad=spread,
        first_call_s=first.latency_s,
        latency_samples_s=samples,
        latency_s=median(samples),
        encode_s=median(item.encode_s for item in times),
        decode_s=median(item.decode_s for item in times),
    )
