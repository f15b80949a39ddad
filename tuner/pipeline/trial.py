"""One trial, start to result: load, warm every shape, time, score, keep artifacts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from registry.errors import TunerError
from registry.record import Measurement, PeakMemory, QualityScore, ShapeMeasurement
from registry.workload import Shape
from tuner.pipeline.apply import load
from tuner.pipeline.artifacts import compile_counters, load_compile_cache, save_compile_cache
from tuner.pipeline.device import Device
from tuner.pipeline.inventory import component_role
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.quantize import layer_types
from tuner.pipeline.reference import Capture, Reference, reference_path
from tuner.pipeline.request import call_arguments
from tuner.pipeline.scoring import NotFiniteError, Scorer
from tuner.pipeline.timing import DeviceClock, RequestTimes, median_and_mad, run_request
from tuner.protocol import TrialJob, TrialResult

Report = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, detail)."""

WARM_STEPS = 2


class QualityRejectedError(TunerError):
    """The plan's numbers are not finite: no policy admits that."""


class TrialRun:
    """State of one trial. `run` is its only entry."""

    def __init__(self, job: TrialJob, device: Device, import_s: float, report: Report) -> None:
        self.job, self.device, self.import_s, self.report = job, device, import_s, report
        self.clock = DeviceClock(device.torch_device)
        self.pipe: Any = None
        self.load_s = 0.0
        self.load_peak_bytes = 0

    def run(self) -> TrialResult:
        self._load_artifact()
        self._load_pipeline()
        self._write_reference()
        first_calls = self._warm_up()
        settled = compile_counters()["graphs"]
        shapes = self._time_denoiser() if self.job.rung == "denoiser" else self._time_requests()
        shapes = tuple(
            item.model_copy(update={"first_call_s": first_calls[position]})
            for position, item in enumerate(shapes)
        )
        counters = compile_counters()
        scores = self._score()
        return TrialResult(
            measurement=self._measurement(shapes, counters, settled, first_calls[0]),
            scores=scores,
            calibrated=self.job.model.ref.weights == "pretrained",
            artifact_bytes=self._save_artifact(),
            cache_hits=counters["fxgraph_cache_hit"],
            cache_misses=counters["fxgraph_cache_miss"],
            counters=counters,
        )

    def _load_artifact(self) -> None:
        if self.job.artifact_in is not None:
            self.report("artifacts", 0, 1, "")
            load_compile_cache(Path(self.job.artifact_in), str(self.job.artifact_in_sha256))

    def _load_pipeline(self) -> None:
        start = time.perf_counter()

        def on_layer(component: str, done: int, total: int) -> None:
            if done % 64 == 0 or done == total:
                self.report("load", done, total, component)

        self.pipe = load(self.job.model, self.job.plan, self.device.torch_device, on_layer=on_layer)
        self.clock.wait()
        self.load_s = time.perf_counter() - start
        self.load_peak_bytes = self.device.reserved_peak_bytes()

    @property
    def denoiser(self) -> Any:
        modules = pipeline_modules(self.pipe)
        return next(m for n, m in modules.items() if component_role(n, m) == "denoiser")

    def _steps(self) -> int:
        import inspect

        from tuner import catalog

        if self.job.steps is not None:
            return self.job.steps
        if self.job.model.catalog is not None:
            return catalog.entry(self.job.model.catalog).default_steps
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        return int(parameters["num_inference_steps"].default)

    def _pairs(self) -> list[tuple[str, int]]:
        """Prompts and seeds side by side, the shorter list repeated."""
        prompts, seeds = self.job.prompts, self.job.seeds
        count = max(len(prompts), len(seeds))
        return [(prompts[i % len(prompts)], seeds[i % len(seeds)]) for i in range(count)]

    def _request(
        self, shape: Shape, prompt: str, seed: int, steps: int, output_type: str, phase: str
    ) -> RequestTimes:
        arguments = call_arguments(self.pipe, shape, [prompt] * shape.batch_size, steps)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        with torch.no_grad():
            return run_request(
                self.pipe,
                self.clock,
                {**arguments, "generator": generator, "output_type": output_type},
                lambda step: self.report(phase, step, steps, shape.label),
            )

    def _warm_up(self) -> list[float]:
        """First request of each shape, then again while compilation has not settled."""
        prompt, seed = self._pairs()[0]
        output = "latent" if self.job.rung == "denoiser" else "pt"
        first_calls = []
        for shape in self.job.workload.shapes:
            times = self._request(shape, prompt, seed, WARM_STEPS, output, "compile")
            first_calls.append(times.latency_s)
        if len(self.job.workload.shapes) > 1:
            for shape in self.job.workload.shapes:
                self._request(shape, prompt, seed, WARM_STEPS, output, "compile")
        return first_calls

    def _time_denoiser(self) -> tuple[ShapeMeasurement, ...]:
        prompt, seed = self._pairs()[0]
        steps = self.job.denoiser_steps
        measured = []
        for shape in self.job.workload.shapes:
            times = self._request(shape, prompt, seed, steps, "latent", "steps")
            step_ms, spread = median_and_mad(list(times.step_ms))
            measured.append(
                ShapeMeasurement(
                    shape=shape,
                    steps=steps,
                    step_ms=step_ms,
                    step_ms_mad=spread,
                    first_call_s=0.0,
                    encode_s=times.encode_s,
                )
            )
        return tuple(measured)

    def _time_requests(self) -> tuple[ShapeMeasurement, ...]:
        """Whole requests, the shapes taken in turn so that drift of the clocks hits all alike."""
        steps, pairs = self._steps(), self._pairs()
        found: dict[Shape, list[RequestTimes]] = {s: [] for s in self.job.workload.shapes}
        for repeat in range(self.job.repeats):
            prompt, seed = pairs[repeat % len(pairs)]
            for shape in self.job.workload.shapes:
                found[shape].append(self._request(shape, prompt, seed, steps, "pt", "images"))
                self._keep_image(found[shape][-1].images)
        return tuple(_summary(shape, steps, times) for shape, times in found.items())

    def _keep_image(self, images: torch.Tensor) -> None:
        if not bool(torch.isfinite(images).all()):
            raise QualityRejectedError("the picture holds NaN or infinity")
        if self.job.image_out is not None:
            self.pipe.image_processor.numpy_to_pil(
                images[:1].detach().cpu().float().permute(0, 2, 3, 1).numpy()
            )[0].save(self.job.image_out)

    def _write_reference(self) -> None:
        """The reference's trajectories, before anything is timed. Needs an uncompiled denoiser."""
        if self.job.reference_out is None:
            return
        steps, folder = self._steps(), Path(self.job.reference_out)
        for shape in self.job.workload.shapes:
            for pair, (prompt, seed) in enumerate(self._pairs()):
                capture = Capture(steps)
                with capture.watching(self.denoiser):
                    times = self._request(shape, prompt, seed, steps, "pt", "reference")
                if not bool(torch.isfinite(times.images).all()):
                    raise QualityRejectedError("the reference picture holds NaN or infinity")
                capture.save(reference_path(folder, shape, pair), times.embeddings, times.images)

    def _score(self) -> tuple[QualityScore, ...]:
        if self.job.reference_in is None:
            return ()
        scores: list[QualityScore] = []
        try:
            for shape in self.job.workload.shapes:
                for pair, (prompt, seed) in enumerate(self._pairs()):
                    scores += self._score_pair(shape, pair, prompt, seed)
                    self.report("score", pair + 1, len(self._pairs()), shape.label)
        except NotFiniteError as error:
            raise QualityRejectedError(str(error)) from None
        return tuple(scores)

    def _score_pair(self, shape: Shape, pair: int, prompt: str, seed: int) -> list[QualityScore]:
        device = self.device.torch_device
        path = reference_path(Path(str(self.job.reference_in)), shape, pair)
        scorer = Scorer(Reference(path), shape, prompt, seed)
        scores = scorer.trajectory(self.denoiser, device)
        self.pipe.maybe_free_model_hooks()
        if self.job.rung == "denoiser":
            return scores
        times = self._request(shape, prompt, seed, self._steps(), "pt", "score")
        return scores + scorer.embeddings(times.embeddings, device) + scorer.picture(times.images)

    def _save_artifact(self) -> int:
        if self.job.artifact_out is None:
            return 0
        self.report("artifacts", 0, 1, "")
        return save_compile_cache(Path(self.job.artifact_out))

    def _measurement(
        self,
        shapes: tuple[ShapeMeasurement, ...],
        counters: dict[str, int],
        settled_graphs: int,
        first_call_s: float,
    ) -> Measurement:
        first_image_s = self.import_s + self.load_s + first_call_s
        warm = self.job.artifact_in is not None
        return Measurement(
            rung=self.job.rung,
            shapes=shapes,
            memory=self._memory(),
            load_s=self.load_s,
            start_s=self.import_s,
            cold_first_image_s=None if warm else first_image_s,
            warm_first_image_s=first_image_s if warm else None,
            graphs=counters["graphs"],
            graph_breaks=counters["graph_breaks"],
            recompiles=counters["graphs"] - settled_graphs,
            layer_types={
                name: layer_types(module) for name, module in pipeline_modules(self.pipe).items()
            },
        )

    def _memory(self) -> PeakMemory:
        outside = self.device.outside_allocator_bytes()
        reserved = self.device.reserved_peak_bytes()
        return PeakMemory(
            peak_vram_bytes=reserved + outside,
            load_peak_vram_bytes=self.load_peak_bytes + outside,
            allocator_peak_bytes=self.device.allocated_peak_bytes(),
            reserved_peak_bytes=reserved,
            outside_allocator_bytes=outside,
        )


def _summary(shape: Shape, steps: int, times: list[RequestTimes]) -> ShapeMeasurement:
    step_ms, spread = median_and_mad([gap for item in times for gap in item.step_ms])
    samples = tuple(item.latency_s for item in times)
    return ShapeMeasurement(
        shape=shape,
        steps=steps,
        step_ms=step_ms,
        step_ms_mad=spread,
        first_call_s=0.0,
        latency_samples_s=samples,
        latency_s=median(samples),
        encode_s=median(item.encode_s for item in times),
        decode_s=median(item.decode_s for item in times),
    )
