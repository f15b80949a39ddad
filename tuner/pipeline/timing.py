"""Times requests of a pipeline on the device's own clock: CUDA events, or the CPU's counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

StepDone = Callable[[int], None]


@dataclass(frozen=True)
class RequestTimes:
    """One finished request. `step_ms` are gaps between ends of consecutive steps, so one fewer
    than the steps; `encode_s` is from the start to the embeddings, `decode_s` from the last step
    to the picture. `images` is the pipeline's output, `embeddings` what `encode_prompt` gave."""

    latency_s: float
    encode_s: float
    decode_s: float
    step_ms: tuple[float, ...]
    images: Any
    embeddings: tuple[Any, ...]


class DeviceClock:
    """Marks moments in the order the device reaches them; reading waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def elapsed_s(self, start: Any, end: Any) -> float:
        if not self._cuda:
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000.0


def run_request(
    pipe: Any, clock: DeviceClock, arguments: dict[str, Any], on_step: StepDone
) -> RequestTimes:
    """Run `pipe(**arguments)` once, alone on the device, and time its parts."""
    marks: list[Any] = []
    encoded: list[Any] = []
    embeddings: list[tuple[Any, ...]] = []
    encode = pipe.encode_prompt

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        encoded.append(clock.mark())
        embeddings.append(tuple(output))
        return output

    def step_end(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        marks.append(clock.mark())
        on_step(step + 1)
        return values

    clock.wait()
    wall_start = time.perf_counter()
    start = clock.mark()
    pipe.encode_prompt = watched
    try:
        output = pipe(**arguments, callback_on_step_end=step_end)
    finally:
        pipe.encode_prompt = encode
    end = clock.mark()
    clock.wait()
    latency_s = time.perf_counter() - wall_start
    gaps = [clock.elapsed_s(a, b) * 1000.0 for a, b in pairwise(marks)]
    return RequestTimes(
        latency_s=latency_s,
        encode_s=clock.elapsed_s(start, encoded[0]) if encoded else 0.0,
        decode_s=clock.elapsed_s(marks[-1], end) if marks else 0.0,
        step_ms=tuple(gaps),
        images=output[0] if isinstance(output, tuple) else output.images,
        embeddings=embeddings[0] if embeddings else (),
    )


def median_and_mad(values: list[float]) -> tuple[float, float]:
    """Median and median absolute deviation of at least one value."""
    middle = median(values)
    return middle, median(abs(value - middle) for value in values)
