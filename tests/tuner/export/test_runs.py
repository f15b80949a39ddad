"""Exported scripts run, beside `apply` on the same folder."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    GroupOffload,
    LayerScheme,
    ModelOffload,
    Plan,
    ProcessOptions,
    Quantization,
    ReleaseAfterUse,
    SequentialOffload,
    TaylorSeerCache,
    VaeOptions,
)
from tests.tuner.export.plans import COMPONENTS, SHAPE, everywhere, plan_of
from tests.tuner.pipeline.tiny import DENOISER, PROMPT, saved
from tuner import catalog
from tuner.export import diffusers_script
from tuner.export.weights import QUANTIZE, QUANTIZE_EACH
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.quantize import layer_types

# diffusers' schedulers hand tensors to numpy 2, whose protocol torch does not speak yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True)
class Tiny:
    """A tiny model of the catalog in a folder, with random weights."""

    name: str
    folder: Path

    @property
    def denoiser(self) -> str:
        return DENOISER[self.name]

    def script(self, plan: Plan) -> str:
        return diffusers_script(
            plan,
            model=resolve_model(str(self.folder)),
            pipeline_class=catalog.entry(self.name).pipeline_class,
            inventory=catalog.shipped_inventory(self.name),
            shape=SHAPE,
            prompt=PROMPT,
            steps=2,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    def applied(self, plan: Plan) -> Made:
        """What the engine makes of a pipeline of one's own."""
        forget_graphs()
        dtype = getattr(torch, plan.pipeline.dtype)
        pipe = DiffusionPipeline.from_pretrained(self.folder, dtype=dtype)
        engine.apply(pipe, plan, engine.default_device())
        output = pipe(
            prompt=PROMPT,
            height=SHAPE.height,
            width=SHAPE.width,
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(0),
        )
        return made(pipe, output.images[0])

    def exported(self, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
        """What the script makes, run in this process."""
        forget_graphs()
        script, image = folder / "script.py", folder / "image.png"
        script.write_text(self.script(plan), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(script), str(self.folder), str(image)])
        pipe = runpy.run_path(str(script), run_name="__main__")["pipe"]
        return made(pipe, Image.open(image))


def forget_graphs() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@dataclass(frozen=True)
class Made:
    """`graphs` and `breaks` are what dynamo counted since `forget_graphs`."""

    picture: bytes
    layers: dict[str, dict[str, int]]
    graphs: int
    breaks: int


def made(pipe: Any, image: Image.Image) -> Made:
    counters = compile_counters()
    layers = {name: layer_types(module) for name, module in pipeline_modules(pipe).items()}
    return Made(image.tobytes(), layers, counters["graphs"], counters["graph_breaks"])


@pytest.fixture(scope="module", params=sorted(DENOISER))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    return Tiny(request.param, saved(resolve_model(request.param), folder))


@pytest.fixture(autouse=True)
def torch_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a plan sets for the whole process, put back."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


CACHE = TaylorSeerCache(interval_steps=2, warmup_steps=1, order=0)


def eager(denoiser: str) -> Plan:
    """All that a CPU can do with either model without compiling."""
    return plan_of(
        ProcessOptions(float32_matmul_precision="high", dynamo_recompile_limit=16, threads=1),
        dtype="float32",
        components={
            denoiser: ComponentPlan(
                quantization=Quantization(
                    scheme="int8_weight_only", skip=("*embed*", "norm*"), min_features=64
                ),
                channels_last=True,
            ),
            "text_encoder_2": ComponentPlan(
                quantization=Quantization(scheme="float8_weight_only"),
                placement=ReleaseAfterUse(),
            ),
        },
        fuse_qkv=True,
        vae=VaeOptions(tiling=True, slicing=True),
        step_cache=CACHE if denoiser == "transformer" else None,
    )


def test_a_script_makes_what_apply_makes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = eager(tiny.denoiser)
    ours = tiny.applied(plan)
    assert tiny.exported(plan, tmp_path, monkeypatch) == ours
    assert ours.layers[tiny.denoiser]["Linear/Int8Tensor"] > 0
    assert ours.layers["text_encoder_2"]["Linear/Float8Tensor"] > 0
    assert torch._dynamo.config.recompile_limit == 16


def test_a_script_of_a_mixed_plan_quantizes_each_layer_as_apply_does(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: dict[str, LayerScheme] = {
        "*.to_*": "int8_weight_only",
        "*transformer_blocks.*.to_q": "float8_weight_only",
        "*transformer_blocks.*.to_v": "float8_static_tensor",
    }
    mixed = Quantization(scheme="mixed", layers=layers, skip=("*embed*",), min_features=32)
    plan = plan_of(dtype="float32", components={tiny.denoiser: ComponentPlan(quantization=mixed)})
    ours = tiny.applied(plan)
    assert tiny.exported(plan, tmp_path, monkeypatch) == ours
    assert ours.layers[tiny.denoiser]["Linear/Int8Tensor"] > 0
    assert ours.layers[tiny.denoiser]["Linear/Float8Tensor"] > 0
    assert ours.layers[tiny.denoiser]["Linear/StaticFloat8Tensor"] > 0


def test_another_plan_makes_another_picture(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equality above says something only if pictures differ where plans do."""
    plain = tiny.applied(plan_of(dtype="float32", components={}))
    other = tiny.exported(eager(tiny.denoiser), tmp_path, monkeypatch)
    assert other.picture != plain.picture
    assert other.layers != plain.layers


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["tiny-flux"], indirect=True)
def test_a_compiled_script_has_as_many_graphs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilation = Compilation(scope="regional", fullgraph=True)
    quantization = Quantization(scheme="int8_weight_only")
    component = ComponentPlan(compilation=compilation, quantization=quantization)
    plan = plan_of(dtype="float32", components={tiny.denoiser: component}, fuse_qkv=True)
    ours = tiny.applied(plan)
    assert tiny.exported(plan, tmp_path, monkeypatch) == ours
    assert ours.graphs > 0


FLOAT8 = Quantization(scheme="float8_dynamic_row", skip=("*embed*", "norm*"))
ON_A_GPU = {
    "model offload": everywhere(ModelOffload()),
    "model offload beside a resident": everywhere(ModelOffload(), COMPONENTS[1:]),
    "sequential offload": everywhere(SequentialOffload()),
    "group offload": everywhere(GroupOffload(), COMPONENTS[1:3]),
    "float8, released, compiled": plan_of(
        components={
            "text_encoder_2": ComponentPlan(
                quantization=Quantization(scheme="float8_weight_only"), placement=ReleaseAfterUse()
            ),
            "transformer": ComponentPlan(
                quantization=FLOAT8, compilation=Compilation(scope="regional", fullgraph=True)
            ),
        },
        attention_backend="_native_cudnn",
        fuse_qkv=True,
    ),
    "float8 at scale one, compiled": plan_of(
        components={
            "transformer": ComponentPlan(
                quantization=Quantization(scheme="float8_static_tensor", skip=FLOAT8.skip),
                compilation=Compilation(scope="regional", fullgraph=True),
            ),
        },
    ),
    "cached, compiled": plan_of(
        components={
            "transformer": ComponentPlan(
                quantization=FLOAT8, compilation=Compilation(scope="regional", fullgraph=True)
            ),
        },
        step_cache=FirstBlockCache(threshold=1.0),
    ),
    "recorded as a graph": plan_of(
        components={"transformer": ComponentPlan(compilation=Compilation(cuda_graph=True))},
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ON_A_GPU.values(), ids=ON_A_GPU)
@pytest.mark.parametrize("tiny", ["tiny-flux"], indirect=True)
def test_what_only_a_gpu_can_do(
    tiny: Tiny, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tiny.applied(plan)
    assert tiny.exported(plan, tmp_path, monkeypatch) == ours


@pytest.mark.parametrize("tiny", ["tiny-flux"], indirect=True)
def test_a_script_runs_alone(tiny: Tiny, tmp_path: Path) -> None:
    """In a process and a folder of its own, where nothing of ours can be imported."""
    plan = plan_of(dtype="float32", components={"vae": ComponentPlan()}, fuse_qkv=True)
    script = tmp_path / "script.py"
    script.write_text(tiny.script(plan), encoding="utf-8")
    command = [sys.executable, "-I", str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True}
    helped = subprocess.run(command, **options, text=True, check=False)
    assert helped.returncode == 1
    assert "MODEL_FOLDER" in helped.stderr
    done = subprocess.run([*command, str(tiny.folder)], **options, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "image.png") as image:
        assert image.tobytes() == tiny.applied(plan).picture


@pytest.mark.parametrize("definition", [QUANTIZE, QUANTIZE_EACH], ids=["one scheme", "mixed"])
def test_a_script_leaves_alone_what_the_engine_does(definition: str) -> None:
    """Per-tensor float8: torchao takes a layer of 128 by 128 for a block-scaled one."""
    model = nn.ModuleDict({"taken": nn.Linear(128, 128), "free": nn.Linear(128, 256)})
    quantized: list[nn.Module] = []
    names: dict[str, Any] = {
        "nn": nn,
        "fnmatchcase": fnmatchcase,
        "quantize_": lambda layer, _: quantized.append(layer),
        "DEVICE": "cpu",
    }
    exec(definition, names)
    if definition is QUANTIZE:
        names["quantize"](model, None, multiple_of=16, left_alone=[(128, 128)])
    else:
        names["quantize_each"](model, [("*", None, 16, (128, 128))])
    assert quantized == [model["free"]]


def test_a_script_draws_with_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = catalog.weights_folder("shapes-flux")
    assert folder is not None
    shipped = Tiny("shapes-flux", folder)
    plan = plan_of()
    assert shipped.exported(plan, tmp_path, monkeypatch) == shipped.applied(plan)
