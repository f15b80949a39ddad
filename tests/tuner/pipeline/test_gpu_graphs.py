"""Recorded forwards on a GPU draw what the forwards themselves draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from registry.plan import Compilation, ComponentPlan, Quantization
from tests.tuner.pipeline.tiny import FLUX, SDXL, picture, plan
from tuner.model_spec import ModelSpec
from tuner.pipeline import apply as engine
from tuner.pipeline.graphs import MOST_LAYOUTS, RecordedForward, record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def drawn(spec: ModelSpec, denoiser: str, compilation: Compilation) -> tuple[Any, torch.Tensor]:
    """The pipeline, and its second picture."""
    part = ComponentPlan(compilation=compilation)
    pipe = engine.load(spec, plan({denoiser: part}, dtype="bfloat16"), gpu())
    picture(pipe)
    return pipe, picture(pipe)


# diffusers asks for torch's version through a cache, which Dynamo looks through.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("scope", ["none", "regional", "whole"])
@pytest.mark.parametrize(
    ("spec", "denoiser"), [(FLUX, "transformer"), (SDXL, "unet")], ids=["flux", "sdxl"]
)
def test_a_recorded_denoiser_draws_the_same(spec: ModelSpec, denoiser: str, scope: Any) -> None:
    _, wanted = drawn(spec, denoiser, Compilation(scope=scope))
    pipe, found = drawn(spec, denoiser, Compilation(scope=scope, cuda_graph=True))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0 if scope == "none" else 0.02)
    model = getattr(pipe, denoiser)
    recorded = model._compiled_call_impl if scope == "whole" else model.forward
    assert isinstance(recorded, RecordedForward)
    assert len(recorded._recordings) == 1


def test_quantized_and_with_float8_attention_too() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    pytest.importorskip("cudnn")

    def made(graph: bool) -> torch.Tensor:
        part = ComponentPlan(
            quantization=Quantization(scheme="float8_static_tensor", skip=("*embed*", "proj_out")),
            compilation=Compilation(scope="regional", cuda_graph=graph),
        )
        chosen = plan({"transformer": part}, dtype="bfloat16", attention_backend="cudnn_fp8")
        pipe = engine.load(FLUX, chosen, gpu())
        picture(pipe)
        return picture(pipe)

    torch.testing.assert_close(made(True), made(False), rtol=0, atol=0.05)


@torch.no_grad()
def test_inputs_and_layouts_are_told_apart_and_results_are_kept() -> None:
    layer = nn.Linear(8, 8, device="cuda")
    inputs = [torch.randn(rows, 8, device="cuda") for rows in (1, 2, 1, 2)]
    wanted = [layer(item) for item in inputs]
    record(layer, gpu())
    found = [layer(item) for item in inputs]
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    recorded = layer.forward
    assert isinstance(recorded, RecordedForward)
    assert len(recorded._recordings) == 2


def test_calls_with_gradients_are_not_recorded() -> None:
    layer = nn.Linear(4, 4, device="cuda")
    record(layer, gpu())
    layer(torch.ones(1, 4, device="cuda")).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_beyond_so_many_layouts_calls_run_as_they_are() -> None:
    layer = nn.Linear(4, 4, device="cuda")
    record(layer, gpu())
    for rows in range(1, MOST_LAYOUTS + 3):
        assert layer(torch.ones(rows, 4, device="cuda")).shape == (rows, 4)
    recorded = layer.forward
    assert isinstance(recorded, RecordedForward)
    assert len(recorded._recordings) == MOST_LAYOUTS
