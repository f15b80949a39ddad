"""What is measured, an app's plain call and an exported script are of one text length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from registry.plan import Compilation, ComponentPlan, Plan
from tests.tuner.flux import cpu, shipped
from tests.tuner.pipeline.tiny import CPU, PROMPT, SHAPE
from tuner.combine import baseline_plans
from tuner.export.request import request
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.ahead import Ahead
from tuner.pipeline.request import call_arguments
from tuner.pipeline.text_length import longest_text_tokens, padded_text_tokens, plain_text_tokens

PLAIN = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}


def compiled_by_regions(name: str) -> Plan:
    """As the space makes plans of this model."""
    (plan,) = baseline_plans(shipped(name), cpu())
    denoiser = shipped(name).denoiser.name
    components = {denoiser: ComponentPlan(compilation=Compilation(scope="regional"))}
    options = plan.pipeline.model_copy(update={"components": components})
    return plan.model_copy(update={"pipeline": options})


def keys_met(name: str, plan: Plan, call: Callable[[Any], object]) -> set[str]:
    """Of all that compiled code of a call is made of. Nothing is compiled here."""
    ahead = Ahead(is_recording=True)
    with torch._dynamo.config.patch(disable=True), torch.no_grad():
        call(engine.load(resolve_model(name), plan, CPU, ahead=ahead))
    return ahead.called


def in_the_worker(pipe: Any) -> object:
    arguments = call_arguments(pipe, SHAPE, [PROMPT], 1)
    return pipe(**arguments, output_type="latent")


def in_an_app(pipe: Any) -> object:
    return pipe(PROMPT, **PLAIN)


def in_the_script(plan: Plan) -> Callable[[Any], object]:
    text = "\n".join(request(plan, SHAPE, PROMPT, 1).lines)
    return lambda pipe: exec(text, {"pipe": pipe, "torch": torch})


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-sdxl", "shapes-flux"])
def test_worker_app_and_script_meet_the_same_compiled_code(name: str) -> None:
    """A script pads by its call alone, without what `tuner.load` does to a pipeline."""
    plan = compiled_by_regions(name)
    unpadded = plan.pipeline.model_copy(update={"text_tokens": None})
    measured = keys_met(name, plan, in_the_worker)
    assert measured
    assert keys_met(name, plan, in_an_app) == measured
    by_hand = plan.model_copy(update={"pipeline": unpadded})
    assert keys_met(name, by_hand, in_the_script(plan)) == measured


def test_without_the_plan_a_plain_call_would_meet_other_code() -> None:
    """Or the test above could not fail."""
    plan = compiled_by_regions("tiny-flux")
    unpadded = plan.pipeline.model_copy(update={"text_tokens": None})
    longer = keys_met("tiny-flux", plan.model_copy(update={"pipeline": unpadded}), in_an_app)
    assert longer.isdisjoint(keys_met("tiny-flux", plan, in_an_app))


def test_only_what_a_tokenizer_shortens_is_padded() -> None:
    tiny = engine.load(resolve_model("tiny-flux"), compiled_by_regions("tiny-flux"), CPU)
    assert (plain_text_tokens(tiny), longest_text_tokens(tiny)) == (512, 32)
    assert padded_text_tokens(tiny) == 32
    tiny.tokenizer_2.model_max_length = 512
    assert padded_text_tokens(tiny) is None
