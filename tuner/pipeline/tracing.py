"""A few denoiser steps of a plan under `torch.profiler`, after its denoiser trial."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from registry.workload import Shape
from tuner.pipeline.request import Report
from tuner.pipeline.trial import TrialRun
from tuner.protocol import ProfileJob, ProfileResult
from tuner.traces import digest_trace

NOT_FOR_OTHERS = ("host_name", "traceName", "trace_id")
"""What torch writes into a trace about this machine and its folders."""


def profile_plan(job: ProfileJob, trial: TrialRun, report: Report) -> ProfileResult:
    """The trial first, so that its times and peak know nothing of the profiler."""
    result = trial.run()
    trace = _traced(trial, job.shape, job.steps)
    report("trace", job.steps, job.steps, "")
    return ProfileResult(
        trial=result,
        trace=digest_trace(trace["traceEvents"]),
        graph_breaks=graph_breaks(),
        recompiles=recompiles(),
        trace_bytes=_write(trace, Path(job.trace_out)),
    )


def _traced(trial: TrialRun, shape: Shape, steps: int) -> dict[str, Any]:
    """Chrome's trace of `steps` steps. One before them warms the profiler itself up."""
    requests = trial.requests
    with _profiler(trial.device.is_cuda, steps) as profiler:

        def step_done(step: int) -> None:
            # At both ends of what is recorded, so that it holds whole steps and no others.
            if step in (1, 1 + steps):
                trial.clock.wait()
            profiler.step()

        requests.run(
            shape,
            requests.pairs[0],
            "trace",
            steps=steps + 1,
            output_type="latent",
            on_step=step_done,
        )
    return _exported(profiler)


@contextmanager
def _profiler(on_cuda: bool, steps: int) -> Iterator[Any]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule) as profiler:
        yield profiler


def _exported(profiler: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tuner-trace-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_bytes())
    for name in NOT_FOR_OTHERS:
        trace.pop(name, None)
    return trace


def _write(trace: dict[str, Any], path: Path) -> int:
    packed = gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), mtime=0)
    path.write_bytes(packed)
    return len(packed)


def graph_breaks() -> dict[str, int]:
    """How often dynamo broke a graph, by its own words; the first line of each is enough."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for reason, count in counters["graph_break"].items():
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
        name = lines[0] if lines else "no reason given"
        found[name] = found.get(name, 0) + int(count)
    return found


def recompiles() -> tuple[str, ...]:
    """Which guard made dynamo compile a function again, oldest first."""
    from torch._dynamo.utils import get_compilation_metrics

    return tuple(
        f"{metrics.co_name}: {str(metrics.recompile_reason).strip()}"
        for metrics in get_compilation_metrics()
        if metrics.recompile_reason
    )
