"""Profiles through the runner and a real worker process."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.plan import Compilation, ComponentPlan, Plan
from tests.tuner.fake_worker import CPU as DETECTED
from tests.tuner.pipeline.tiny import FLUX, PROMPT, SDXL, SHAPE, WORKLOAD, plan
from tuner.detect import detect
from tuner.floors import step_floors_ms
from tuner.inventories import known_inventory
from tuner.model_spec import ModelSpec
from tuner.pipeline.tracing import graph_breaks, recompiles
from tuner.profile import StepProfile, step_profile
from tuner.protocol import ProfileJob, ProfileResult, TrialJob
from tuner.runner import Limits, Outcome, Runner
from tuner.traces import LAUNCHING, WAITING, digest_trace

ROOT = Path(__file__).parents[3]
LIMITS = Limits(wall_s=500, progress_s=300)


def runner(folder: Path, **options: Any) -> Runner:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environ |= {"HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    detection = options.get("detection", DETECTED)
    return Runner(sys.executable, detection, None, folder / "scratch", environ=environ)


def job(spec: ModelSpec, chosen: Plan, folder: Path, **options: Any) -> ProfileJob:
    trial = TrialJob(
        model=spec,
        workload=WORKLOAD,
        plan=chosen,
        rung="denoiser",
        denoiser_steps=3,
        budget_bytes=2**33,
        prompts=(PROMPT,),
        seeds=(0,),
        compile_cache_dir=str(folder / "compile"),
    )
    trace_out = str(folder / "trace.json.gz")
    return ProfileJob(trial=trial, shape=SHAPE, trace_out=trace_out, **options)


def result_of(outcome: Outcome) -> ProfileResult:
    log = outcome.log_path.read_text()[-4000:]
    assert isinstance(outcome.result, ProfileResult), (outcome.failure, log)
    return outcome.result


def written(folder: Path) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    return trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def eager(folder: Path) -> ProfileResult:
    return result_of(runner(folder).run(job(FLUX, plan(), folder, steps=2), LIMITS))


def test_a_step_on_the_cpu_is_made_of_operators(eager: ProfileResult) -> None:
    trace = eager.trace
    assert (trace.on, trace.steps, trace.launches) == ("cpu", 2, 0)
    products = [op for op in trace.ops if op.name == "aten::addmm"]
    assert [op.calls for op in products] == [2 * 62]
    parts = sum(op.own_us for op in trace.ops) + sum(trace.idle_us.values())
    assert parts == pytest.approx(trace.window_us)
    found = step_profile(eager, {})
    assert {"matmul", "attention", "elementwise", "idle"} <= {item.part for item in found.parts}
    other = found.part("other")
    assert other is None or other.share < 0.05
    assert (found.graphs, found.graph_breaks, found.recompiles) == (0, {}, ())


def test_the_trial_before_it_is_an_ordinary_one(eager: ProfileResult) -> None:
    measured = eager.trial.measurement
    assert measured.rung == "denoiser"
    assert measured.shapes[0].steps == 3
    assert measured.step_ms > 0
    assert measured.memory.peak_vram_bytes > 0


def test_the_trace_can_be_opened_and_names_no_machine(eager: ProfileResult, folder: Path) -> None:
    trace = written(folder)
    assert eager.trace_bytes == (folder / "trace.json.gz").stat().st_size
    assert digest_trace(trace["traceEvents"]) == eager.trace
    assert trace["displayTimeUnit"] == "ms"
    assert "host_name" not in trace
    assert str(folder) not in json.dumps(trace)


def test_a_plan_that_cannot_run_is_told_as_any_trial(tmp_path: Path) -> None:
    whole = Compilation(scope="regional")
    chosen = plan({"vae": ComponentPlan(compilation=whole)})
    outcome = runner(tmp_path).run(job(SDXL, chosen, tmp_path), LIMITS)
    assert outcome.failure is not None
    assert outcome.failure.kind == "unsupported"
    assert not (tmp_path / "trace.json.gz").exists()


def test_breaks_and_recompiles_have_reasons() -> None:
    """In this process: dynamo counts what it compiled since it was reset."""

    def branches(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    already = len(recompiles())
    compiled = torch.compile(branches, backend="eager")
    compiled(torch.ones(2))
    compiled(torch.ones(2, dtype=torch.float64))
    assert sum(graph_breaks().values()) >= 1
    assert all("\n" not in reason and reason for reason in graph_breaks())
    again = recompiles()[already:]
    assert any("branches" in reason and "dtype mismatch" in reason for reason in again)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["none", "regional"])
def test_a_step_on_a_gpu_is_made_of_kernels(scope: Any, tmp_path: Path) -> None:
    compilation = Compilation(scope=scope)
    chosen = plan({"transformer": ComponentPlan(compilation=compilation)}, dtype="bfloat16")
    detection = detect()
    outcome = runner(tmp_path, detection=detection).run(job(FLUX, chosen, tmp_path), LIMITS)
    result = result_of(outcome)
    inventory = known_inventory(None, FLUX)
    assert inventory is not None
    floors = step_floors_ms(inventory, detection.environment, chosen, SHAPE)
    found = step_profile(result, floors)
    on_gpu(found)
    assert (found.graphs > 0) == (scope == "regional")
    events = written(tmp_path)["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    unknown = found.part("other")
    assert unknown is None or unknown.share < 0.1, unknown


def on_gpu(found: StepProfile) -> None:
    """A model this small keeps no GPU busy: it waits for the host, to launch or to read back."""
    assert found.on == "cuda"
    assert found.launches > 20
    assert {"matmul", "attention", "elementwise", "idle"} <= {item.part for item in found.parts}
    assert sum(item.share for item in found.parts) == pytest.approx(1.0)
    idle = found.part("idle")
    assert idle is not None
    assert idle.share > 0.1
    assert max(found.idle_ms, key=lambda cause: found.idle_ms[cause]) in {LAUNCHING, WAITING}
