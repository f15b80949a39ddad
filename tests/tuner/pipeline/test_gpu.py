"""What only a GPU can show: budgets held while loading, offloading, released memory, fp8."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import (
    Compilation,
    ComponentPlan,
    GroupOffload,
    ModelOffload,
    PipelineOptions,
    Placement,
    Plan,
    ProcessOptions,
    Quantization,
    ReleaseAfterUse,
    SequentialOffload,
)
from registry.workload import Shape, Workload
from tests.tuner.pipeline.tiny import FLUX, PROMPT, WORKLOAD, difference, picture, plan
from tuner.compiled_code import unpack
from tuner.detect import detect
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.nvml import open_nvml
from tuner.pipeline import apply as engine
from tuner.pipeline.quantize import layer_types, quantize_layer
from tuner.protocol import TrialJob, TrialResult
from tuner.runner import WORKER_MODULE, Limits, Runner
from tuner.spawn import start_worker, worker_environment
from tuner.standby import Standby

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
GB = 10**9
FLUX_BF16_BYTES = 23_800_000_000
"""Its transformer alone: 11.9 billion parameters of two bytes."""
NAMES = ("transformer", "text_encoder", "text_encoder_2", "vae")
NOTHING_BYTES = 32 * 2**20
"""Far less than a context; the driver's own use moves by a little."""
ROUNDING = 0.02
"""Two bfloat16 pictures of one plan differ by this much where kernels do."""

Run = Callable[[TrialJob], TrialResult]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def run(scratch: Path) -> Run:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environ |= {"HOME": str(scratch), "HF_HUB_OFFLINE": "1"}
    runner = Runner(sys.executable, detect(), None, scratch, environ=environ)

    def result_of(job: TrialJob) -> TrialResult:
        outcome = runner.run(job, Limits(wall_s=400, progress_s=200))
        log = outcome.log_path.read_text()[-4000:]
        assert isinstance(outcome.result, TrialResult), (outcome.failure, log)
        return outcome.result

    return result_of


def job(
    spec: ModelSpec, chosen: Plan, scratch: Path, budget_bytes: int, **options: Any
) -> TrialJob:
    settings: dict[str, Any] = {"workload": WORKLOAD, "rung": "pipeline", "repeats": 1, **options}
    return TrialJob(
        model=spec,
        plan=chosen,
        budget_bytes=budget_bytes,
        prompts=(PROMPT,),
        seeds=(0,),
        compile_cache_dir=str(scratch / "compile"),
        **settings,
    )


def everywhere(placement: Placement) -> Plan:
    return plan({name: ComponentPlan(placement=placement) for name in NAMES}, dtype="bfloat16")


def loaded(chosen: Plan) -> Any:
    return engine.load(FLUX, chosen, torch.device("cuda:0"))


def test_flux_loads_and_runs_under_a_cap_below_its_bfloat16_size(run: Run, scratch: Path) -> None:
    """23.8 GB of transformer and 9.5 GB of T5 never lie on the device, nor one after the other."""
    skip = ("norm*.linear", "*.norm*.linear", "norm_out*", "proj_out", "*embed*")
    components = {
        "transformer": ComponentPlan(
            quantization=Quantization(scheme="float8_dynamic_row", skip=skip, min_features=1024)
        ),
        "text_encoder_2": ComponentPlan(
            quantization=Quantization(scheme="float8_weight_only"), placement=ReleaseAfterUse()
        ),
        "text_encoder": ComponentPlan(placement=ReleaseAfterUse()),
    }
    chosen = Plan(
        process=ProcessOptions(expandable_segments=True),
        pipeline=PipelineOptions(components=components),
    )
    spec = resolve_model("flux-dev", weights="random")
    workload = Workload(shapes=(Shape(height=1024, width=1024),))
    budget_bytes = 22 * GB
    found = run(job(spec, chosen, scratch, budget_bytes, workload=workload, steps=2))
    memory = found.measurement.memory
    assert memory.load_peak_vram_bytes <= memory.peak_vram_bytes <= budget_bytes
    assert memory.allocator_peak_bytes < FLUX_BF16_BYTES
    assert memory.reserved_peak_bytes < 1.01 * memory.allocator_peak_bytes
    assert found.measurement.layer_types["transformer"]["Linear/Float8Tensor"] > 300


@pytest.mark.parametrize("granularity", ["leaf", "block"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
def test_groups_of_layers_stream(granularity: Any, stream: bool) -> None:
    wanted = picture(loaded(plan(dtype="bfloat16")))
    placement = GroupOffload(granularity=granularity, stream=stream)
    pipe = loaded(plan({"transformer": ComponentPlan(placement=placement)}, dtype="bfloat16"))
    assert {item.device.type for item in pipe.transformer.parameters()} == {"cpu"}
    assert difference(picture(pipe), wanted) < ROUNDING
    assert difference(picture(pipe), wanted) < ROUNDING


@pytest.mark.parametrize("placement", [ModelOffload(), SequentialOffload()], ids=["model", "leaf"])
def test_whole_pipelines_offload_and_serve_a_second_request(placement: Placement) -> None:
    wanted = picture(loaded(plan(dtype="bfloat16")))
    pipe = loaded(everywhere(placement))
    assert difference(picture(pipe), wanted) < ROUNDING
    assert difference(picture(pipe), wanted) < ROUNDING


def test_requests_after_scoring_under_model_offload(run: Run, scratch: Path) -> None:
    """Scoring calls the denoiser by itself, which leaves it on the device: the next request, two
    prompts on, must find the components where offloading wants them."""
    reference = str(scratch / "reference")
    base = job(FLUX, plan(dtype="bfloat16"), scratch, 8 * GB)
    base = base.model_copy(update={"prompts": (PROMPT, "a blue square")})
    run(base.model_copy(update={"reference_out": reference}))
    update = {"plan": everywhere(ModelOffload()), "reference_in": reference}
    scores = run(base.model_copy(update=update)).scores
    assert {item.prompt for item in scores} == {PROMPT, "a blue square"}
    assert min(item.value for item in scores if item.metric == "sqnr_db") > 40.0


def test_released_encoders_give_their_memory_back() -> None:
    pipe = loaded(plan({"text_encoder_2": ComponentPlan(placement=ReleaseAfterUse())}))
    encoder = pipe.text_encoder_2
    weights = sum(item.numel() * item.element_size() for item in encoder.parameters())
    picture(pipe)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    during: list[int] = []
    hook = encoder.encoder.register_forward_hook(
        lambda *_: during.append(torch.cuda.memory_allocated())
    )
    first = picture(pipe)
    hook.remove()
    assert during[0] - before >= weights
    assert torch.cuda.memory_allocated() - before < weights / 2 + first.nbytes
    assert {item.device.type for item in encoder.parameters()} == {"cpu"}


@pytest.mark.parametrize("scheme", ["float8_dynamic_row", "float8_dynamic_tensor", "int8_dynamic"])
def test_schemes_of_a_gpu(scheme: Any) -> None:
    part = ComponentPlan(quantization=Quantization(scheme=scheme, min_features=64))
    pipe = loaded(plan({"transformer": part}, dtype="bfloat16"))
    assert any("Tensor" in kind for kind in layer_types(pipe.transformer))
    assert bool(torch.isfinite(picture(pipe)).all())


def test_a_layer_that_fp8_leaves_alone_is_an_invalid_plan() -> None:
    layer = nn.Linear(24, 40, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(InvalidPlan, match=r"unquantized|cannot quantize"):
        quantize_layer("to_q", layer, "float8_dynamic_row")


def test_attention_on_cudnn() -> None:
    wanted = picture(loaded(plan(dtype="bfloat16")))
    pipe = loaded(plan(dtype="bfloat16", attention_backend="_native_cudnn"))
    assert difference(picture(pipe), wanted) < 0.1


@pytest.mark.parametrize("scope", ["regional", "whole"])
def test_a_replay_starts_with_the_code_of_its_proof(run: Run, scratch: Path, scope: Any) -> None:
    """Blocks ahead of time and torch's portable cache, in our framing: what torch writes passes the
    checks of its kinds and keys, and a fresh process with an empty folder compiles no graph."""
    chosen = plan(
        {"transformer": ComponentPlan(compilation=Compilation(scope=scope))}, dtype="bfloat16"
    )
    code, empty = scratch / f"{scope}.bin", scratch / f"empty-{scope}"
    empty.mkdir(mode=0o700)
    run(job(FLUX, chosen, scratch, 4 * GB, artifact_out=str(code)))
    kinds = Counter(part.kind for part in unpack(code.read_bytes()).parts)
    assert kinds.pop("torch_cache") == 1
    assert set(kinds) == ({"function"} if scope == "regional" else set())
    given = {
        "artifact_in": str(code),
        "artifact_in_sha256": hashlib.sha256(code.read_bytes()).hexdigest(),
        "compile_cache_dir": str(empty),
    }
    asked = job(FLUX, chosen, scratch, 4 * GB).model_copy(update={"rung": "replay", **given})
    measured = run(asked).measurement
    assert measured.warm_start is not None
    assert (measured.warm_start.saves_nothing, measured.warm_start.misses) == (False, 0)
    assert measured.warm_start.function_hits == kinds["function"]
    assert measured.warm_first_image_s is not None


def test_a_worker_started_ahead_leaves_the_gpu_alone(scratch: Path) -> None:
    """Ready with everything imported, it holds nothing there; then it runs its job, whose allocator
    setting comes with it."""
    detection = detect()
    assert detection.device_uuid is not None
    nvml, uuid = open_nvml(), detection.device_uuid
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environ |= {"HOME": str(scratch), "HF_HUB_OFFLINE": "1"}
    folder = scratch / "ahead"
    folder.mkdir()
    common = worker_environment(environ, ProcessOptions(), None, uuid)
    chosen = plan(dtype="bfloat16").model_copy(
        update={"process": ProcessOptions(expandable_segments=True)}
    )
    asked = job(FLUX, chosen, scratch, 4 * GB).model_copy(update={"device_index": 0})
    before = nvml.used_bytes(uuid)
    command = (sys.executable, "-m", WORKER_MODULE)
    worker = start_worker(command, common, folder, trial_id="ahead", ahead=True)
    standby = Standby(worker, common, time.monotonic)
    try:
        assert standby.becomes_ready(), worker.log_path.read_text()[-4000:]
        assert nvml.used_bytes(uuid) <= before + NOTHING_BYTES
        needed = worker_environment(environ, chosen.process, asked.compile_cache_dir, uuid)
        assert standby.suits(needed)
        standby.hand_over(asked.model_dump_json().encode(), needed)
        with os.fdopen(os.dup(worker.events), "rb") as events:
            os.set_blocking(events.fileno(), True)
            said = [json.loads(line) for line in events]
        assert said[-1]["event"] == "trial_result", (said[-1], worker.log_path.read_text()[-4000:])
        assert said[-1]["measurement"]["memory"]["outside_allocator_bytes"] > 0
    finally:
        standby.end()
