"""What of a recorded forward needs no GPU: which calls it leaves alone, what it tells others. The
rest is in test_gpu_graphs.py."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import Compilation, ComponentPlan, ReleaseAfterUse
from tests.tuner.pipeline.tiny import CPU, FLUX, load, picture, plan
from tuner.pipeline import graphs
from tuner.pipeline.check import check_plan, find_conflicts
from tuner.pipeline.graphs import record
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.quantize import quantize_layer

GPU = torch.device("cuda", 0)
GRAPH = ComponentPlan(compilation=Compilation(cuda_graph=True))


def test_inputs_that_are_not_on_the_gpu_run_as_they_are() -> None:
    pipe = load(FLUX)
    wanted = picture(pipe)
    record(pipe.transformer, GPU)
    assert torch.equal(picture(pipe), wanted)


def test_others_see_what_the_forward_takes() -> None:
    model = load(FLUX).transformer
    before = inspect.signature(model.forward)
    record(model, GPU)
    assert inspect.signature(model.forward) == before


@pytest.mark.parametrize("scope", ["none", "whole"])
def test_what_is_compiled_whole_is_recorded_outside(scope: Any) -> None:
    layer = nn.Linear(2, 2)
    if scope == "whole":
        layer.compile(backend="eager")
    record(layer, GPU)
    inside = layer.forward if scope == "none" else layer._compiled_call_impl
    assert type(inside).__name__ == "RecordedForward"
    assert layer(torch.ones(1, 2)).shape == (1, 2)


def test_a_recorded_component_takes_no_second_plan() -> None:
    pipe = load(FLUX)
    record(pipe.transformer, GPU)
    found = find_conflicts(pipeline_modules(pipe))
    assert found == {"transformer": "transformer is already recorded as a CUDA graph"}


@pytest.mark.parametrize(
    ("chosen", "component", "device", "reason"),
    [
        (GRAPH, "transformer", CPU, "needs a GPU"),
        (
            GRAPH.model_copy(update={"placement": ReleaseAfterUse()}),
            "text_encoder",
            GPU,
            "do not stay on the GPU",
        ),
        (GRAPH, "vae", GPU, "pipelines call its decode"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    chosen: ComponentPlan, component: str, device: torch.device, reason: str
) -> None:
    pipe = load(FLUX)
    with pytest.raises(InvalidPlan, match=reason):
        check_plan(plan({component: chosen}), pipe, pipeline_modules(pipe), device)


class Stub:
    """In place of a recording, where there is no GPU: says for which weights it was made."""

    made = 0

    def __init__(self, forward: Any, *_: Any) -> None:
        Stub.made += 1
        self._forward = forward

    def replay(self, leaves: list[Any]) -> Any:
        return self._forward(leaves[0])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Two layers on the CPU, and nothing of CUDA behind them."""
    monkeypatch.setattr(graphs, "_Recording", Stub)
    monkeypatch.setattr(graphs, "_Shared", lambda device: device)
    monkeypatch.setattr(Stub, "made", 0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    record(model, CPU)
    return model


@torch.no_grad()
def test_other_weights_other_layers_and_other_layouts_are_recorded_anew(
    recorded: nn.Sequential,
) -> None:
    inputs, made = torch.ones(1, 2), []
    changes: list[Any] = [
        lambda: None,
        lambda: None,
        lambda: setattr(recorded[0], "weight", nn.Parameter(torch.zeros(2, 2))),
        lambda: recorded.append(nn.ReLU()),
        lambda: setattr(recorded[1], "processor", object()),
        lambda: None,
    ]
    for change in changes:
        change()
        recorded(inputs)
        made.append(Stub.made)
    assert made == [1, 1, 2, 3, 4, 4]
    recorded(torch.ones(3, 2))
    recorded(inputs)
    assert Stub.made == 5


@torch.no_grad()
def test_moved_weights_are_recorded_anew(recorded: nn.Sequential) -> None:
    recorded(torch.ones(1, 2))
    recorded.to(torch.float64)
    recorded.to(torch.float32)
    recorded(torch.ones(1, 2))
    assert Stub.made == 2


@torch.no_grad()
def test_a_quantized_weight_counts_with_what_it_is_made_of() -> None:
    layer = nn.Linear(16, 16).requires_grad_(False)
    quantize_layer("layer", layer, "float8_static_tensor")
    before = list(graphs._contents(layer))
    again = list(graphs._contents(layer))
    other = nn.Linear(16, 16).requires_grad_(False)
    quantize_layer("layer", other, "float8_static_tensor")
    layer.weight = other.weight
    assert before == again
    assert list(graphs._contents(layer)) != before
