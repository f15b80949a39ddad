"""Picture requests of a workload, as calls of a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from registry.workload import Shape
from tuner import catalog
from tuner.pipeline.reference import timesteps_of
from tuner.pipeline.text_length import PARAMETER, longest_text_tokens
from tuner.pipeline.timing import DeviceClock, RequestTimes, StepDone, run_request
from tuner.protocol import TrialJob

OTHER_SEED = 1_000_003
"""Added to a seed where the same prompt is drawn once more."""

Report = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, detail)."""


def call_arguments(pipe: Any, shape: Shape, prompts: list[str], steps: int) -> dict[str, Any]:
    """Keyword arguments for `pipe(...)`: `prompts` has `shape.batch_size` entries."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {
        "prompt": prompts,
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps,
    }
    if shape.frames > 1:
        arguments["num_frames"] = shape.frames
    text_tokens = shape.text_tokens or longest_text_tokens(pipe)
    if PARAMETER in accepted and text_tokens is not None:
        arguments[PARAMETER] = text_tokens
    if not shape.guidance and "guidance_scale" in accepted:
        arguments["guidance_scale"] = 1.0
    return arguments


class Requests:
    """A trial's requests: its shapes, its prompts and seeds side by side, its steps.
    `caches_steps`: some steps of a request are not computed, so that they take unequally long.

    `more_pairs` are the same prompts with other seeds, for trained weights: the reference draws
    them as the yardstick of how much a seed matters, a plan while its verdict is open.
    """

    def __init__(self, job: TrialJob, pipe: Any, clock: DeviceClock, report: Report) -> None:
        self.shapes = job.workload.shapes
        self.steps = job.steps or _default_steps(job, pipe)
        self.caches_steps = job.plan.pipeline.step_cache is not None
        self.pairs = _pairs(job)
        is_trained = job.model.ref.weights == "pretrained"
        self.more_pairs = [(text, seed + OTHER_SEED) for text, seed in self.pairs if is_trained]
        self._pipe, self._clock, self._report = pipe, clock, report

    def run(
        self,
        shape: Shape,
        pair: tuple[str, int],
        phase: str,
        *,
        steps: int | None = None,
        output_type: str = "pt",
        on_step: StepDone | None = None,
    ) -> RequestTimes:
        """One request, alone on the device. `pair` is a prompt and a seed; `steps` None is the
        trial's own number; `output_type` "latent" leaves the picture undecoded. `on_step` is called
        with the number of steps done, after each."""
        prompt, seed = pair
        count = steps or self.steps
        arguments = call_arguments(self._pipe, shape, [prompt] * shape.batch_size, count)
        generator = torch.Generator(device="cpu").manual_seed(seed)

        def step_done(step: int) -> None:
            self._report(phase, step, count, shape.label)
            if on_step is not None and step > 0:
                on_step(step)

        step_done(0)
        with torch.no_grad():
            return run_request(
                self._pipe,
                self._clock,
                {**arguments, "generator": generator, "output_type": output_type},
                step_done,
            )

    def timesteps(self) -> torch.Tensor | None:
        """Those of the last request's scheduler."""
        return timesteps_of(self._pipe)


def _pairs(job: TrialJob) -> list[tuple[str, int]]:
    """The shorter of prompts and seeds is repeated."""
    prompts, seeds = job.prompts, job.seeds
    count = max(len(prompts), len(seeds))
    return [(prompts[i % len(prompts)], seeds[i % len(seeds)]) for i in range(count)]


def _default_steps(job: TrialJob, pipe: Any) -> int:
    if job.model.catalog is not None:
        return catalog.entry(job.model.catalog).default_steps
    return int(inspect.signature(type(pipe).__call__).parameters["num_inference_steps"].default)
