"""A denoiser compiled whole rounds as eager mode does, so that its picture is the same."""

from __future__ import annotations

from typing import Any

import torch

from registry.plan import Compilation, ComponentPlan, Plan
from tests.tuner.pipeline.tiny import FLUX, picture, plan
from tuner.choices import EAGER_ROUNDING
from tuner.pipeline import apply as engine

ENOUGH_DB = 30.0
"""What the strictest policy asks for. Without eager mode's roundings it is 8 dB."""


def test_compiled_whole_in_bfloat16_the_denoiser_predicts_what_it_does_eagerly() -> None:
    eager, call = denoiser_and_its_call(plan(dtype="bfloat16"))
    wanted = predicted(eager, call)
    compilation = Compilation(scope="whole", inductor_options=EAGER_ROUNDING)
    chosen = plan({"transformer": ComponentPlan(compilation=compilation)}, dtype="bfloat16")
    compiled = engine.load(FLUX, chosen, torch.device("cpu")).transformer
    noise = (predicted(compiled, call) - wanted).square().mean()
    assert 10.0 * torch.log10(wanted.square().mean() / noise) > ENOUGH_DB


def denoiser_and_its_call(chosen: Plan) -> tuple[Any, dict[str, Any]]:
    """With the arguments that a request gives it first."""
    pipe = engine.load(FLUX, chosen, torch.device("cpu"))
    calls: list[dict[str, Any]] = []
    keep = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, named: calls.append(dict(named)), with_kwargs=True
    )
    picture(pipe)
    keep.remove()
    return pipe.transformer, calls[0]


def predicted(denoiser: Any, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = denoiser(**call)[0]
    return output.float()
