"""One plan, four ways to run it: measured by a worker, loaded, applied to an app's own pipeline,
and as an exported script. Pictures, layer types and compiled graphs are equal.

Together the plans cover every option that runs on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from registry.base import Frozen
from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    PipelineOptions,
    Plan,
    ProcessOptions,
    Quantization,
    ReleaseAfterUse,
    StreamedBlocks,
    VaeOptions,
)
from tests.tuner.fake_worker import CPU as DETECTED
from tests.tuner.pipeline.tiny import CPU, FLUX, PROMPT, SDXL, SHAPE, WORKLOAD, picture, saved
from tuner.export import diffusers_script
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.quantize import layer_types
from tuner.protocol import TrialJob, TrialResult
from tuner.runner import Limits, Runner

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
STEPS = 2


def quantization(scheme: Any, **options: Any) -> Quantization:
    return Quantization(scheme=scheme, **options)


UNCOMPILED_FLUX = Plan(
    process=ProcessOptions(threads=1, float32_matmul_precision="high", cudnn_benchmark=True),
    pipeline=PipelineOptions(
        dtype="float32",
        components={
            "transformer": ComponentPlan(
                quantization=quantization(
                    "int8_weight_only", skip=("norm*.linear", "proj_out"), min_features=32
                )
            ),
            "text_encoder": ComponentPlan(quantization=quantization("float8_weight_only")),
            "text_encoder_2": ComponentPlan(
                quantization=quantization("int8_dynamic"), placement=ReleaseAfterUse()
            ),
            "vae": ComponentPlan(channels_last=True),
        },
        attention_backend="_native_math",
        fuse_qkv=True,
        vae=VaeOptions(tiling=True, slicing=True),
        text_tokens=16,
        step_cache=FirstBlockCache(threshold=1.0),
    ),
)
HALF_SDXL = Plan(
    process=ProcessOptions(threads=1),
    pipeline=PipelineOptions(
        dtype="bfloat16",
        components={
            "unet": ComponentPlan(quantization=quantization("int8_dynamic"), channels_last=True),
            "text_encoder": ComponentPlan(placement=ReleaseAfterUse()),
            "text_encoder_2": ComponentPlan(quantization=quantization("int8_weight_only")),
            "vae": ComponentPlan(quantization=quantization("float8_weight_only")),
        },
        fuse_qkv=True,
    ),
)
COMPILED_SDXL = Plan(
    process=ProcessOptions(threads=1, dynamo_recompile_limit=16),
    pipeline=PipelineOptions(
        dtype="float32",
        components={
            "unet": ComponentPlan(
                quantization=quantization(
                    "mixed",
                    layers={"*.to_*": "float8_weight_only", "*.ff.*": "int8_weight_only"},
                    min_features=64,
                ),
                placement=StreamedBlocks(resident_blocks=1, slots=3),
                compilation=Compilation(
                    scope="regional",
                    dynamic=True,
                    fullgraph=True,
                    inductor_options={"epilogue_fusion": True, "shape_padding": False},
                ),
            ),
            "text_encoder": ComponentPlan(
                compilation=Compilation(scope="whole", dynamic=False, mode="reduce-overhead")
            ),
        },
    ),
)


@dataclass(frozen=True)
class Case:
    spec: ModelSpec
    plan: Plan
    pipeline_class: str
    graphs: int


CASES = {
    "flux": Case(FLUX, UNCOMPILED_FLUX, "FluxPipeline", 0),
    "sdxl bfloat16": Case(SDXL, HALF_SDXL, "StableDiffusionXLPipeline", 0),
    "sdxl compiled": Case(SDXL, COMPILED_SDXL, "StableDiffusionXLPipeline", 2),
}


@dataclass(frozen=True)
class Run:
    """What one way gave. `pixels` are 8-bit, shape (height, width, 3); `counts` are dynamo's graphs
    and graph breaks."""

    pixels: np.ndarray[Any, Any]
    layer_types: dict[str, dict[str, int]]
    counts: tuple[int, int]


@dataclass(frozen=True)
class Bench:
    """One case, the model saved as a folder, and where compiled code is shared."""

    case: Case
    folder: Path
    scratch: Path

    @property
    def spec(self) -> ModelSpec:
        return resolve_model(str(self.folder))

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CXX": os.environ["CXX"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.scratch / "home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "compile"),
        }


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    scratch = tmp_path_factory.mktemp("scratch")
    case: Case = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(scratch / "compile"))
        patch.setattr(torch.backends.cudnn, "benchmark", False)
        with torch._dynamo.config.patch(recompile_limit=8):
            yield Bench(case, saved(case.spec, scratch / "model"), scratch)
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def here(pipe: Any) -> Run:
    """One request of a pipeline in this process."""
    images = picture(pipe, num_inference_steps=STEPS)
    (image,) = pipe.image_processor.numpy_to_pil(images.float().permute(0, 2, 3, 1).numpy())
    types = {name: layer_types(module) for name, module in pipeline_modules(pipe).items()}
    found = compile_counters()
    return Run(np.asarray(image), types, (found["graphs"], found["graph_breaks"]))


@pytest.fixture(scope="module")
def measured(bench: Bench) -> Run:
    """The worker's trial, which compiles first: the other ways find its code."""
    job = TrialJob(
        model=bench.spec,
        workload=WORKLOAD,
        plan=bench.case.plan,
        rung="pipeline",
        budget_bytes=2**33,
        steps=STEPS,
        repeats=1,
        prompts=(PROMPT,),
        seeds=(0,),
        compile_cache_dir=str(bench.scratch / "compile"),
        image_out=str(bench.scratch / "measured.png"),
    )
    runner = Runner(sys.executable, DETECTED, None, bench.scratch / "trials", environ=bench.environ)
    outcome = runner.run(job, Limits(wall_s=500, progress_s=500))
    assert isinstance(outcome.result, TrialResult), outcome.log_path.read_text()
    found = outcome.result.measurement
    assert found.recompiles == 0
    types = {name: dict(counts) for name, counts in found.layer_types.items()}
    counts = (found.graphs, found.graph_breaks)
    return Run(pixels_of(bench.scratch / "measured.png"), types, counts)


@pytest.fixture
def fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def assert_equal(found: Run, wanted: Run) -> None:
    assert found.layer_types == wanted.layer_types
    assert found.counts == wanted.counts
    assert np.array_equal(found.pixels, wanted.pixels)


def test_the_worker_did_what_the_plan_says(bench: Bench, measured: Run) -> None:
    assert measured.counts[0] == bench.case.graphs
    for name, component in bench.case.plan.pipeline.components.items():
        quantized = any("Tensor" in kind for kind in measured.layer_types[name])
        assert quantized is (component.quantization.scheme != "none")
    assert measured.pixels.shape == (SHAPE.height, SHAPE.width, 3)
    assert measured.pixels.std() > 5.0


def test_loaded(bench: Bench, measured: Run, fresh: None) -> None:
    assert_equal(here(engine.load(bench.spec, bench.case.plan, CPU)), measured)


def test_applied_to_an_apps_own_pipeline(bench: Bench, measured: Run, fresh: None) -> None:
    dtype = getattr(torch, bench.case.plan.pipeline.dtype)
    factory = getattr(diffusers, bench.case.pipeline_class)
    pipe = factory.from_pretrained(str(bench.folder), dtype=dtype)
    report = engine.apply(pipe, bench.case.plan, CPU)
    assert report.conflicts == ()
    assert_equal(here(pipe), measured)


EPILOGUE = """

import json
from torch import nn
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.quantize import layer_types

parts = {name: item for name, item in pipe.components.items() if isinstance(item, nn.Module)}
types = {name: layer_types(module) for name, module in parts.items()}
counts = compile_counters()
print(json.dumps({"types": types, "counts": [counts["graphs"], counts["graph_breaks"]]}))
"""


def test_exported_as_a_script(bench: Bench, measured: Run) -> None:
    script = diffusers_script(
        bench.case.plan,
        model=bench.spec,
        pipeline_class=bench.case.pipeline_class,
        inventory=take_inventory(bench.spec, WORKLOAD, lambda *_: None),
        shape=SHAPE,
        prompt=PROMPT,
        steps=STEPS,
        device="cpu",
    )
    assert "tuner" not in script.partition('"""\n')[2].replace("tuning", "")
    path, image = bench.scratch / "script.py", bench.scratch / "exported.png"
    path.write_text(script + EPILOGUE)
    done = subprocess.run(
        [sys.executable, str(path), str(bench.folder), str(image)],
        env=bench.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert_equal(Run(pixels_of(image), said["types"], tuple(said["counts"])), measured)


def changed(path: str, value: Any, default: Any) -> Iterator[str]:
    """Paths of what is not at its default."""
    if not isinstance(value, dict) or path.endswith(("inductor_options", "quantization.layers")):
        if value != default:
            yield path
        return
    for key, item in value.items():
        yield from changed(f"{path}.{key}", item, (default or {}).get(key))


def every(path: str, kind: Any) -> Iterator[str]:
    """Paths of everything that a type of the vocabulary can say."""
    models = [item for item in (kind, *_arguments(kind)) if _is_model(item)]
    if not models:
        yield path
    for model in models:
        for name, field in model.model_fields.items():
            if f"{path}.{name}" != "plan.pipeline.components":
                yield from every(f"{path}.{name}", field.annotation)


def _arguments(kind: Any) -> Iterator[Any]:
    for item in get_args(kind):
        yield item
        yield from _arguments(item)


def _is_model(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, Frozen)


def covered_by(plan: Plan) -> set[str]:
    said = plan.model_dump()
    components = said["pipeline"].pop("components")
    default = Plan(pipeline=PipelineOptions(components={})).model_dump()
    paths = set(changed("plan", said, default))
    for item in components.values():
        paths |= set(changed("component", item, ComponentPlan().model_dump()))
    return paths


ON_A_GPU = {
    "plan.process.expandable_segments",
    "component.placement.granularity",
    "component.placement.stream",
    "component.placement.blocks_per_group",
    "component.compilation.cuda_graph",
}
IN_SCRIPTS = {
    f"plan.pipeline.step_cache.{name}" for name in ("interval_steps", "warmup_steps", "order")
}
"""A plan has one step cache; the other kind is in `tests/tuner/export/test_runs.py`."""


def test_the_plans_cover_every_option_that_runs_on_a_cpu() -> None:
    covered = set().union(*(covered_by(case.plan) for case in CASES.values()))
    wanted = {*every("plan", Plan), *every("component", ComponentPlan)}
    assert covered == wanted - ON_A_GPU - IN_SCRIPTS - {"plan.format"}
    schemes = {
        item.quantization.scheme
        for case in CASES.values()
        for item in case.plan.pipeline.components.values()
    }
    assert schemes == {"none", "int8_weight_only", "int8_dynamic", "float8_weight_only", "mixed"}
