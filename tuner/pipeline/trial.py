"""One trial, start to result: load, warm every shape, time, score, keep artifacts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from registry.errors import UntrustedArtifact
from registry.record import Measurement, PeakMemory, QualityScore, ShapeMeasurement
from registry.workload import Shape
from tuner.compiled_code import CodePart
from tuner.gate import is_open
from tuner.pipeline.ahead import Ahead
from tuner.pipeline.apply import load
from tuner.pipeline.artifacts import (
    Warmth,
    compile_counters,
    load_compiled_code,
    save_compiled_code,
)
from tuner.pipeline.components import component_role
from tuner.pipeline.device import Device
from tuner.pipeline.measuring import first_image_s, time_denoiser, time_requests, warm_up
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.proof import Drawn, drawn_by, refuse_not_finite, score, write_reference
from tuner.pipeline.quantize import layer_types
from tuner.pipeline.request import Report, Requests
from tuner.pipeline.timing import DeviceClock, RequestTimes
from tuner.protocol import TrialJob, TrialResult

logger = logging.getLogger("tuner")

LAYERS_A_REPORT = 64


class TrialRun:
    """State of one trial. `run` is its only entry."""

    def __init__(self, job: TrialJob, device: Device, import_s: float, report: Report) -> None:
        self.job, self.device, self.import_s, self.report = job, device, import_s, report
        self.began_s = time.perf_counter()
        self.clock = DeviceClock(device.torch_device)
        self.pipe: Any = None
        self.warmth: Warmth | None = None
        self.ahead = Ahead(is_recording=job.artifact_out is not None)
        self.artifact_s = 0.0
        self.load_s = 0.0
        self.load_peak_bytes = 0
        self.drawn: dict[tuple[Shape, tuple[str, int]], Drawn] = {}

    def run(self) -> TrialResult:
        self._load_artifact()
        self._load_pipeline()
        if self.job.reference_out is not None:
            write_reference(self.requests, self.denoiser, Path(self.job.reference_out))
        first = warm_up(self.requests, decode=self.job.rung != "denoiser")
        self.ahead.stop_recording()
        settled_graphs = compile_counters()["graphs"]
        shapes = self._time(first)
        counters = compile_counters()
        scores, not_computed = self._score()
        return TrialResult(
            measurement=self._measurement(shapes, first, counters, settled_graphs),
            scores=scores,
            not_computed=not_computed,
            calibrated=self.calibrated,
            artifact_bytes=self._save_artifact(first),
            counters=counters,
        )

    def _load_artifact(self) -> None:
        if self.job.artifact_in is None:
            return
        self.report("artifacts", 0, 1, "")
        start = time.perf_counter()
        path, folder = Path(self.job.artifact_in), Path(self.job.compile_cache_dir)
        self.warmth = load_compiled_code(path, str(self.job.artifact_in_sha256), folder)
        self.ahead = self.warmth.ahead
        self.artifact_s = time.perf_counter() - start

    def _load_pipeline(self) -> None:
        start = time.perf_counter()

        def on_layer(component: str, done: int, total: int) -> None:
            if done % LAYERS_A_REPORT == 0 or done == total:
                self.report("load", done, total, component)

        self.pipe = load(
            self.job.model,
            self.job.plan,
            self.device.torch_device,
            on_layer=on_layer,
            ahead=self.ahead,
        )
        self.clock.wait()
        self.load_s = time.perf_counter() - start
        self.load_peak_bytes = self.device.reserved_peak_bytes()

    @property
    def calibrated(self) -> bool:
        """Whether pictures mean anything."""
        return self.job.model.ref.weights == "pretrained"

    @cached_property
    def requests(self) -> Requests:
        return Requests(self.job, self.pipe, self.clock, self.report)

    @property
    def denoiser(self) -> nn.Module:
        modules = pipeline_modules(self.pipe)
        return next(m for n, m in modules.items() if component_role(n, m) == "denoiser")

    def _time(self, first: Sequence[RequestTimes]) -> tuple[ShapeMeasurement, ...]:
        if self.job.rung == "denoiser":
            return time_denoiser(self.requests, first, self.job.denoiser_steps)
        return time_requests(self.requests, first, self.job.repeats, self._keep)

    def _keep(self, shape: Shape, pair: tuple[str, int], done: RequestTimes) -> None:
        """Refuse a broken picture, keep what will be scored, write one where the job asks."""
        images = done.images
        refuse_not_finite(images)
        if self.job.reference_in is not None and (shape, pair) not in self.drawn:
            self.drawn[shape, pair] = drawn_by(self.requests, done)
        if self.job.image_out is not None:
            pixels = images[:1].detach().cpu().float().permute(0, 2, 3, 1).numpy()
            self.pipe.image_processor.numpy_to_pil(pixels)[0].save(self.job.image_out)

    def _score(self) -> tuple[tuple[QualityScore, ...], dict[str, str]]:
        if self.job.reference_in is None:
            return (), {}
        return score(
            self.requests,
            self.pipe,
            self.denoiser,
            self.device.torch_device,
            Path(self.job.reference_in),
            self.report,
            pictures=self.job.rung != "denoiser",
            timed=self.drawn,
            is_open=lambda found: is_open(found, self.job.policy, self.calibrated),
        )

    def _functions(self, first: Sequence[RequestTimes]) -> tuple[CodePart, ...]:
        """Code compiled ahead of time, where there is time for about what the first requests took
        to compile: a trial that ends in between has measured for nothing."""
        limit_s, needed_s = self.job.limit_s, 2.0 * sum(item.latency_s for item in first)
        spent_s = self.import_s + time.perf_counter() - self.began_s
        if limit_s is not None and spent_s + needed_s > limit_s:
            logger.warning("nothing is compiled ahead of time: the trial's time is short")
            return ()
        return self.ahead.compile_ahead(lambda done, total: self.report("capture", done, total, ""))

    def _save_artifact(self, first: Sequence[RequestTimes]) -> int:
        if self.job.artifact_out is None:
            return 0
        self.report("capture", 0, 1, "")
        path, folder = Path(self.job.artifact_out), Path(self.job.compile_cache_dir)
        functions = self._functions(first)
        try:
            return save_compiled_code(path, folder, self.device.torch_device, functions)
        except UntrustedArtifact as error:
            logger.warning("compiled code is not kept: %s", error.message)
            return 0

    def _measurement(
        self,
        shapes: tuple[ShapeMeasurement, ...],
        first: Sequence[RequestTimes],
        counters: dict[str, int],
        settled_graphs: int,
    ) -> Measurement:
        image_s = first_image_s(first[0], shapes[0], self.requests.steps)
        start_to_image_s = self.import_s + self.artifact_s + self.load_s + image_s
        warm = self.warmth is not None
        return Measurement(
            rung=self.job.rung,
            shapes=shapes,
            memory=self._memory(),
            load_s=self.load_s,
            start_s=self.import_s,
            cold_first_image_s=None if warm else start_to_image_s,
            warm_first_image_s=start_to_image_s if warm else None,
            warm_start=None if self.warmth is None else self.warmth.counted(),
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
