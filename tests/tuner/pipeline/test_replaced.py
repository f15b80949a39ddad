"""Python code that a block runs: each part is in the key, and watched from then on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxTransformer2DModel
from diffusers.utils import hub_utils
from torch import nn
from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

from tuner.pipeline import gelu
from tuner.pipeline.gelu import ProjectedSigmoidGELU
from tuner.pipeline.norm_rope import FusedFluxAttention
from tuner.pipeline.replaced import CodeSeen


def scaled(value: float, factor: float = 2.0, *, offset: float = 1.0) -> float:
    return value * factor + offset


class Base:
    def helper(self, value: float) -> float:
        return scaled(value)


class Layer(Base):
    factor = 2.0

    def __call__(self, value: float) -> float:
        return self.helper(value) * self.factor + self.of_class() + self.of_none() + self.read

    @classmethod
    def of_class(cls) -> float:
        return cls.factor

    @staticmethod
    def of_none() -> float:
        return 1.0

    @property
    def read(self) -> float:
        return 1.0


def other(*_: Any, **__: Any) -> Any:
    return 7.0


@pytest.mark.parametrize(
    ("kind", "owner", "name", "value"),
    [
        (ProjectedSigmoidGELU, ProjectedSigmoidGELU, "gelu", other),
        (ProjectedSigmoidGELU, gelu, "gelu", other),
        (ProjectedSigmoidGELU, gelu, "CUBIC", 0.5),
        (FluxAttnProcessor, FluxAttnProcessor, "_attention_backend", "_native_math"),
        (FusedFluxAttention, FusedFluxAttention, "_turned", other),
        (FusedFluxAttention, FluxAttnProcessor, "__call__", other),
        (Layer, Base, "helper", other),
        (Layer, Layer, "helper", other),
        (Layer, Layer, "factor", 3.0),
        (Layer, Layer, "of_class", classmethod(other)),
        (Layer, Layer, "of_none", staticmethod(other)),
        (Layer, Layer, "read", property(other)),
        (Layer, scaled, "__defaults__", (3.0,)),
        (Layer, scaled, "__kwdefaults__", {"offset": 3.0}),
        (Layer, scaled, "__code__", other.__code__),
    ],
)
def test_what_a_block_runs_is_said_and_watched(
    kind: type, owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = CodeSeen()
    before = seen.of_class(kind)
    assert seen.replaced() is None
    monkeypatch.setattr(owner, name, value, raising=False)
    assert seen.replaced() is not None
    assert CodeSeen().of_class(kind) != before


def test_what_a_model_has_to_save_itself_is_the_same_in_each_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the hub's session is not."""
    before = CodeSeen().of_class(FluxTransformer2DModel)
    monkeypatch.setattr(hub_utils, "SESSION_ID", "another")
    assert CodeSeen().of_class(FluxTransformer2DModel) == before


@pytest.mark.parametrize("kind", [SimpleNamespace, QuantizeTensorToInt8Kwargs, nn.Linear, Layer])
def test_what_nobody_replaced_stays(kind: type) -> None:
    """Also a class without `__call__`, whose class has one."""
    seen = CodeSeen()
    digests = {seen.of_class(kind), CodeSeen().of_class(kind)}
    assert (len(digests), seen.replaced()) == (1, None)


def test_another_object_of_the_same_value_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CodeSeen()
    before = seen.of_class(Layer)
    monkeypatch.setattr(Layer, "factor", float("2.0"))
    assert (seen.replaced(), CodeSeen().of_class(Layer)) == (None, before)


def test_what_is_deleted_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CodeSeen()
    seen.of_class(Layer)
    monkeypatch.delattr(Layer, "factor")
    assert seen.replaced() == "Layer.factor"


def test_what_torch_notes_in_a_class_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CodeSeen()
    before = seen.of_class(Layer)
    monkeypatch.setattr(Layer, "__a_note__", {}, raising=False)
    assert (seen.replaced(), seen.replaced()) == (None, None)
    assert CodeSeen().of_class(Layer) == before
    monkeypatch.setattr(Layer, "helper", other, raising=False)
    assert seen.replaced() == "Layer.helper"
