"""One layer at a time: what is alive while a model loads, and what a load leaves."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from registry.plan import ComponentPlan, Quantization, ReleaseAfterUse
from tests.tuner.pipeline.tiny import CPU, FLUX, load, plan, quantized
from tuner.pipeline import apply as engine
from tuner.pipeline.fuse import fuse
from tuner.pipeline.load import materialise
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.weights import FusedWeights, ModuleWeights, RandomWeights, WeightSource

INT8 = ComponentPlan(quantization=Quantization(scheme="int8_weight_only"))
META = torch.device("meta")


class Counting:
    """Another source; knows how many bytes of what it gave are still alive."""

    def __init__(self, inner: WeightSource) -> None:
        self._inner = inner
        self.alive_bytes = self.peak_bytes = self.largest_bytes = self.total_bytes = 0
        self.names: list[str] = []

    def tensor(self, name: str, like: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.names.append(name)
        given = self._inner.tensor(name, like, device)
        size = given.untyped_storage().nbytes()
        self.total_bytes += size
        self.largest_bytes = max(self.largest_bytes, size)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        weakref.finalize(given.untyped_storage(), self._died, size)
        return given

    def _died(self, size: int) -> None:
        self.alive_bytes -= size

    def buffer(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._inner.buffer(name, like)


def transformer() -> nn.Module:
    return build_skeleton(FLUX, torch.float32).modules["transformer"]


def test_at_most_one_layers_unquantized_weight_is_alive() -> None:
    module = transformer()
    source = Counting(RandomWeights("transformer", 0))
    materialise("transformer", module, source, INT8, CPU, lambda *_: None)
    kept = sum(item.untyped_storage().nbytes() for item in _plain(module))
    assert source.alive_bytes == kept
    assert source.peak_bytes <= kept + source.largest_bytes
    assert source.peak_bytes < source.total_bytes / 4


def _plain(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not quantized: biases and norms."""
    return [item for item in module.parameters() if type(item.data) is torch.Tensor]


def test_at_most_one_fused_layer_and_its_parts_are_alive() -> None:
    module = transformer()
    source = Counting(RandomWeights("transformer", 0))
    fused = FusedWeights(source, fuse(module))
    materialise("transformer", module, fused, INT8, CPU, lambda *_: None)
    assert source.peak_bytes < source.total_bytes / 4
    assert len(source.names) == len(set(source.names))


def test_an_apps_weights_are_let_go_layer_by_layer() -> None:
    module = load(FLUX).transformer
    weights = {name: item for name, item in module.named_parameters() if item.dim() == 2}
    alive = {name: weakref.ref(item.untyped_storage()) for name, item in weights.items()}
    del weights
    first = "time_text_embed.timestep_embedder.linear_1.weight"
    seen: dict[str, bool] = {}

    def done(_: str, number: int, __: int) -> None:
        if number == 60:
            seen.update({name: ref() is not None for name, ref in alive.items()})

    source = ModuleWeights(dict(module.named_parameters()))
    materialise("transformer", module, source, INT8, CPU, done)
    assert seen[first] is False
    assert seen["proj_out.weight"] is True
    assert not any(ref() is not None for ref in alive.values())


@pytest.mark.parametrize("part", [ComponentPlan(), INT8], ids=["unquantized", "int8"])
def test_tied_weights_stay_tied_and_are_read_once(part: ComponentPlan) -> None:
    encoder = build_skeleton(FLUX, torch.float32).modules["text_encoder_2"]
    source = Counting(RandomWeights("text_encoder_2", 0))
    materialise("text_encoder_2", encoder, source, part, CPU, lambda *_: None)
    shared = encoder.get_submodule("shared")
    embedding = encoder.get_submodule("encoder.embed_tokens")
    assert shared.weight is embedding.weight
    assert "encoder.embed_tokens.weight" not in source.names
    assert len(source.names) == len(set(source.names))


def test_an_apps_tied_weights_stay_tied_too() -> None:
    pipe = load(FLUX)
    engine.apply(pipe, quantized("text_encoder_2", "int8_weight_only"), CPU)
    encoder = pipe.text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = self.table.weight


def test_a_tied_linear_layer_is_quantized_without_its_table() -> None:
    """Quantizing comes apart from the tie: the table keeps numbers that embeddings can look up."""
    module = TiedHead()
    weights = module.table.weight.detach().clone()
    materialise("x", module, ModuleWeights({"table.weight": weights}), INT8, CPU, lambda *_: None)
    assert torch.equal(module.table.weight, weights)
    assert type(module.head.weight.data) is not torch.Tensor


def test_every_layer_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    engine.load(FLUX, plan(), CPU, on_layer=lambda *item: seen.append(item))
    for component in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        own = [item[1:] for item in seen if item[0] == component]
        assert own == [(number, own[-1][1]) for number in range(1, own[-1][1] + 1)]


def test_what_does_not_stay_on_the_device_goes_back_to_the_host() -> None:
    """The meta device stands for a GPU: nothing of a resident component is left on the host."""
    weights = ModuleWeights(dict(load(FLUX).transformer.named_parameters()))
    module = transformer()
    materialise("transformer", module, weights, ComponentPlan(), META, lambda *_: None)
    assert {item.device for item in module.parameters()} == {META}
    host = build_skeleton(FLUX, torch.float32).modules["text_encoder"]
    away = ComponentPlan(placement=ReleaseAfterUse())
    source: Any = RandomWeights("text_encoder", 0)
    materialise("text_encoder", host, source, away, CPU, lambda *_: None)
    tensors = [*host.parameters(), *host.buffers()]
    assert {item.device for item in tensors} == {CPU}
    assert not any(item.requires_grad for item in host.parameters())
