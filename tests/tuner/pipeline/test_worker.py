"""Jobs through the runner and a real worker process, and how each failure is named."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.plan import ComponentPlan, ModelOffload, Plan, Quantization, ReleaseAfterUse
from tests.tuner.fake_worker import CPU as DETECTED
from tests.tuner.pipeline.tiny import FLUX, PROMPT, WORKLOAD, plan, quantized, saved
from tuner.models import resolve_model
from tuner.pipeline.inventory import take_inventory
from tuner.protocol import (
    EnvironmentJob,
    InventoryJob,
    InventoryResult,
    TrialJob,
    TrialResult,
)
from tuner.runner import Limits, Outcome, Runner

ROOT = Path(__file__).parents[3]
LIMITS = Limits(wall_s=300, progress_s=300)
BUDGET_BYTES = 2**32


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def run(scratch: Path) -> Callable[..., Outcome]:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(scratch / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return Runner(sys.executable, DETECTED, None, scratch, environ=environ).run


def test_a_worker_started_ahead_of_its_job_is_like_any(scratch: Path) -> None:
    """Its clock says how long the import took, and not how long it waited."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runner = Runner(sys.executable, DETECTED, None, scratch, environ=environ, ahead=True)
    with closing(runner):
        fresh = runner.run(EnvironmentJob(), LIMITS)
        ahead = runner.run(EnvironmentJob(), LIMITS)
    assert fresh.hello is not None
    assert ahead.hello is not None, ahead.failure
    assert ahead.result == fresh.result
    assert ahead.hello.environment == fresh.hello.environment
    assert ahead.hello.import_s > 0.0
    assert fresh.hidden_s == 0.0


def trial(scratch: Path, chosen: Plan, **options: Any) -> TrialJob:
    settings: dict[str, Any] = {"model": FLUX, "rung": "pipeline", "repeats": 2, **options}
    return TrialJob(
        workload=WORKLOAD,
        plan=chosen,
        budget_bytes=BUDGET_BYTES,
        prompts=(PROMPT, "a blue square"),
        seeds=(0,),
        compile_cache_dir=str(scratch / "compile"),
        **settings,
    )


def result_of(outcome: Outcome) -> TrialResult:
    log = outcome.log_path.read_text()
    assert isinstance(outcome.result, TrialResult), (outcome.failure, log)
    return outcome.result


def failure_of(outcome: Outcome) -> tuple[str, str]:
    assert outcome.failure is not None, outcome.result
    return outcome.failure.kind, outcome.failure.message


@pytest.fixture(scope="module")
def baseline(run: Callable[..., Outcome], scratch: Path) -> TrialResult:
    """The unquantized model; its reference is in `scratch/reference`."""
    job = trial(
        scratch,
        plan(),
        reference_out=str(scratch / "reference"),
        image_out=str(scratch / "picture.png"),
    )
    return result_of(run(job, LIMITS))


def test_an_inventory_is_the_same_from_a_worker(run: Callable[..., Outcome]) -> None:
    events: list[Any] = []
    outcome = run(InventoryJob(model=FLUX, workload=WORKLOAD), LIMITS, events.append)
    assert isinstance(outcome.result, InventoryResult), outcome.log_path.read_text()
    assert outcome.result.inventory == take_inventory(FLUX, WORKLOAD, lambda *_: None)
    assert [event.event for event in events] == ["hello", "progress", "inventory_result"]
    assert outcome.hello is not None
    assert outcome.hello.environment.runtime.torch == torch.__version__
    assert outcome.hello.import_s > 0.0


def test_a_baseline_is_timed_and_leaves_a_reference(baseline: TrialResult, scratch: Path) -> None:
    measured = baseline.measurement
    shape = measured.shapes[0]
    assert measured.rung == "pipeline"
    assert shape.steps == 4
    assert len(shape.latency_samples_s) == 2
    assert shape.latency_s is not None
    assert 0.0 < shape.step_ms / 1000.0 < shape.latency_s
    assert measured.cold_first_image_s is not None
    assert measured.cold_first_image_s > measured.load_s + measured.start_s
    assert measured.warm_first_image_s is None
    assert (measured.graphs, measured.graph_breaks, measured.recompiles) == (0, 0, 0)
    assert measured.layer_types["transformer"]["Linear/float32"] == 62
    assert 0 < measured.memory.peak_vram_bytes < BUDGET_BYTES
    assert not baseline.calibrated
    assert baseline.scores == ()
    assert len(list((scratch / "reference").glob("64x64-*-*.safetensors"))) == 2
    assert (scratch / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_denoiser_rung_is_held_to_the_reference(
    run: Callable[..., Outcome], scratch: Path, baseline: TrialResult
) -> None:
    job = trial(
        scratch,
        quantized("transformer", "int8_weight_only"),
        rung="denoiser",
        denoiser_steps=3,
        reference_in=str(scratch / "reference"),
    )
    found = result_of(run(job, LIMITS))
    assert {item.metric for item in found.scores} == {"sqnr_db"}
    assert {item.prompt for item in found.scores} == {PROMPT, "a blue square"}
    assert all(15.0 < item.value < 60.0 for item in found.scores)
    assert found.measurement.shapes[0].latency_s is None
    assert found.measurement.layer_types["transformer"]["Linear/Int8Tensor"] == 62


def test_the_pipeline_rung_scores_pictures_too(
    run: Callable[..., Outcome], scratch: Path, baseline: TrialResult
) -> None:
    float8 = ComponentPlan(
        quantization=Quantization(scheme="float8_weight_only"), placement=ReleaseAfterUse()
    )
    job = trial(
        scratch,
        plan({"text_encoder_2": float8}, fuse_qkv=True),
        reference_in=str(scratch / "reference"),
    )
    found = result_of(run(job, LIMITS))
    worst = {
        metric: min(item.value for item in found.scores if item.metric == metric)
        for metric in ("sqnr_db", "embedding_sqnr_db", "psnr_db", "ssim")
    }
    assert worst["sqnr_db"] > 90.0
    assert 10.0 < worst["embedding_sqnr_db"] < 60.0
    assert 10.0 < worst["psnr_db"] < 80.0
    assert 0.5 < worst["ssim"] < 1.0


def test_a_plan_this_machine_cannot_run_is_unsupported(
    run: Callable[..., Outcome], scratch: Path
) -> None:
    offloaded = plan({"transformer": ComponentPlan(placement=ModelOffload())})
    outcome = run(trial(scratch, offloaded), LIMITS)
    kind, message = failure_of(outcome)
    assert kind == "unsupported"
    assert "transformer is placed by model_offload, which needs a GPU" in message
    assert "Traceback" not in message
    assert "Traceback" in outcome.log_path.read_text()


def test_weights_that_are_not_finite_are_rejected(
    run: Callable[..., Outcome], scratch: Path, tmp_path: Path
) -> None:
    folder = saved(FLUX, tmp_path / "broken")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["proj_out.weight"].fill_(math.nan)
    save_file(tensors, path)
    job = trial(scratch, plan(), model=resolve_model(str(folder)))
    assert failure_of(run(job, LIMITS)) == (
        "rejected_quality",
        "the picture holds NaN or infinity",
    )


def test_a_folder_that_is_gone(run: Callable[..., Outcome], scratch: Path, tmp_path: Path) -> None:
    spec = FLUX.model_copy(
        update={
            "path": str(tmp_path / "gone"),
            "ref": FLUX.ref.model_copy(update={"weights": "pretrained"}),
        }
    )
    kind, message = failure_of(run(trial(scratch, plan(), model=spec), LIMITS))
    assert kind == "unsupported"
    assert "gone has no model_index.json" in message
