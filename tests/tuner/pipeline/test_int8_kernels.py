"""torchao's int8 kernel tuner: off in every worker, and a conflict in an app that has it on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from registry.errors import PlanConflict
from registry.plan import (
    ComponentPlan,
    LayerScheme,
    PipelineOptions,
    Plan,
    ProcessOptions,
    Quantization,
    Scheme,
)
from tuner.models import resolve_model
from tuner.pipeline.apply import load
from tuner.pipeline.int8_kernels import MODULE, kernel_tuner_conflicts
from tuner.spawn import worker_environment

CUDA = torch.device("cuda")
VARIABLES = {"TORCHAO_AUTOTUNER_ENABLE": "1", "TORCHAO_AUTOTUNER_DATA_PATH": "/stranger.pkl"}


def plan(scheme: Scheme) -> Plan:
    component = ComponentPlan(quantization=Quantization(scheme=scheme))
    return Plan(pipeline=PipelineOptions(components={"transformer": component}))


@pytest.fixture
def tuner_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `TORCHAO_AUTOTUNER_ENABLE=1`; fails where torchao has another name for it."""
    monkeypatch.setattr(f"{MODULE}.AUTOTUNER_ENABLE", True)


def test_an_int8_plan_conflicts_with_the_tuner(tuner_on: None) -> None:
    (told,) = kernel_tuner_conflicts(plan("int8_dynamic"), CUDA)
    assert "TORCHAO_AUTOTUNER_ENABLE" in told


def test_so_does_a_mixture_with_int8_in_it(tuner_on: None) -> None:
    layers: dict[str, LayerScheme] = {"*.to_q": "int8_dynamic", "*.ff.*": "float8_dynamic_row"}
    component = ComponentPlan(quantization=Quantization(scheme="mixed", layers=layers))
    mixed = Plan(pipeline=PipelineOptions(components={"transformer": component}))
    assert kernel_tuner_conflicts(mixed, CUDA)


def test_loading_it_is_refused_before_any_weight_is_read(tuner_on: None) -> None:
    spec = resolve_model("tiny-flux", weights="random")
    with pytest.raises(PlanConflict, match="TORCHAO_AUTOTUNER_ENABLE"):
        load(spec, plan("int8_dynamic"), CUDA)


@pytest.mark.parametrize("scheme", ["none", "int8_weight_only", "float8_dynamic_row"])
def test_other_plans_never_reach_the_kernel(tuner_on: None, scheme: Scheme) -> None:
    assert kernel_tuner_conflicts(plan(scheme), CUDA) == ()


def test_a_cpu_never_reaches_the_kernel(tuner_on: None) -> None:
    assert kernel_tuner_conflicts(plan("int8_dynamic"), torch.device("cpu")) == ()


def test_without_the_tuner_there_is_no_conflict() -> None:
    assert kernel_tuner_conflicts(plan("int8_dynamic"), CUDA) == ()


def test_a_torchao_without_the_tuner_has_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    assert kernel_tuner_conflicts(plan("int8_dynamic"), CUDA) == ()


def test_a_worker_starts_without_its_variables() -> None:
    environment = worker_environment({**os.environ, **VARIABLES}, ProcessOptions(), None, None)
    assert not VARIABLES.keys() & environment.keys()
    assert is_on(environment) == "False"


def test_the_variable_is_what_turns_it_on() -> None:
    assert is_on({**os.environ, "TORCHAO_AUTOTUNER_ENABLE": "1"}) == "True"


def is_on(environment: dict[str, str]) -> str:
    code = f"import {MODULE} as intmm; print(intmm.AUTOTUNER_ENABLE)"
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return child.stdout.strip()


@pytest.mark.gpu
@pytest.mark.parametrize("features", [640, 768])
def test_why_it_stays_off(features: int) -> None:
    """If this fails for 640, torchao has mended its kernel and the tuner may be offered."""
    triton = pytest.importorskip("triton")
    intmm_triton = pytest.importorskip("torchao.kernel.intmm_triton")
    made = torch.Generator("cuda").manual_seed(0)
    rows = torch.randint(-127, 128, (64, features), generator=made, device=CUDA, dtype=torch.int8)
    weight = torch.randint(-127, 128, (64, features), generator=made, device=CUDA, dtype=torch.int8)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 256, "GROUP_M": 8}
    config = triton.Config(blocks, num_stages=1, num_warps=4)
    assert str(config.kwargs) in {str(item.kwargs) for item in intmm_triton.int8_mm_kernel_configs}
    out = torch.empty(64, 64, device=CUDA)
    # Rows before the last are read into by the block before: keep memory behind both operands.
    padded = [torch.cat([item, item])[:64] for item in (rows, weight)]
    scales = torch.ones(64, 1, device=CUDA).expand(64, 64)
    intmm_triton.int_scaled_matmul_kernel(padded[0], padded[1].t(), scales, out, config)
    exact = rows.double() @ weight.double().t()
    is_right = torch.allclose(out.double(), exact)
    assert is_right == (features % 256 == 0)
