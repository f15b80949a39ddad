"""GELU without tanh: the same function, in the same places."""

from __future__ import annotations

import torch
from diffusers.models.activations import GEGLU, GELU
from torch import nn
from torch.nn import functional

from registry.plan import Compilation
from tests.tuner.pipeline.tiny import CPU, FLUX, load
from tuner.pipeline.compile import compile_block, compile_component
from tuner.pipeline.gelu import ProjectedSigmoidGELU, SigmoidGELU, gelu, without_tanh


def test_it_is_the_same_function() -> None:
    x = torch.linspace(-20, 20, 40_001)
    assert torch.allclose(gelu(x), functional.gelu(x, approximate="tanh"), rtol=0, atol=2e-6)
    exact = functional.gelu(x.double(), approximate="tanh")
    for dtype in (torch.bfloat16, torch.float16):
        rounded = functional.gelu(x.to(dtype).double(), approximate="tanh")
        assert gelu(x.to(dtype)).dtype == dtype
        assert (gelu(x.to(dtype)).double() - rounded).abs().max() <= (
            torch.finfo(dtype).eps * exact.abs().max()
        )


def test_ends_are_kept() -> None:
    ends = torch.tensor([float("inf"), -1e4, 0.0, float("nan")])
    found = gelu(ends)
    assert found[0] == float("inf")
    assert found[1:3].tolist() == [0.0, 0.0]
    assert found[3].isnan()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tanh, self.erf = nn.GELU(approximate="tanh"), nn.GELU()
        self.projected = GELU(4, 8, approximate="tanh")
        self.exact = GELU(4, 8)
        self.gated = GEGLU(4, 8)


def test_only_the_tanh_form_is_changed() -> None:
    module = Mixed()
    names = set(module.state_dict())
    without_tanh(module)
    kinds = {name: type(child) for name, child in module.named_children()}
    assert kinds == {
        "tanh": SigmoidGELU,
        "erf": nn.GELU,
        "projected": ProjectedSigmoidGELU,
        "exact": GELU,
        "gated": GEGLU,
    }
    assert set(module.state_dict()) == names


def test_what_is_compiled_has_no_tanh_left_and_what_is_eager_keeps_it() -> None:
    model = load(FLUX).transformer
    compile_component("transformer", model, Compilation(), CPU)
    assert _tanh_forms(model) > 0
    block = model.transformer_blocks[0]
    compile_block(block, Compilation(scope="regional"), CPU)
    assert _tanh_forms(block) == 0
    compile_component("transformer", model, Compilation(scope="whole"), CPU)
    assert _tanh_forms(model) == 0


def _tanh_forms(module: nn.Module) -> int:
    kinds = (nn.GELU, GELU)
    forms = (item for item in module.modules() if type(item) in kinds)
    return sum(getattr(item, "approximate", "") == "tanh" for item in forms)
