"""A step cache in a served pipeline: what one request leaves behind never reaches the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidPlan
from registry.plan import (
    Compilation,
    ComponentPlan,
    FirstBlockCache,
    Plan,
    Quantization,
    StepCache,
    StreamedBlocks,
    TaylorSeerCache,
)
from tests.tuner.pipeline.test_variants import around, image
from tests.tuner.pipeline.tiny import CPU, FLUX, SDXL, load, picture, plan
from tuner.pipeline import apply as engine
from tuner.pipeline.caching import call_alone, enable_step_cache
from tuner.pipeline.place import pipeline_modules
from tuner.pipeline.reference import first_tensor
from tuner.pipeline.step_cache import compile_forwards

FIRST_BLOCK = FirstBlockCache(threshold=1.0)
TAYLOR = TaylorSeerCache(interval_steps=3, warmup_steps=2)
STEPS = 6


@pytest.fixture(scope="module", params=[FIRST_BLOCK, TAYLOR], ids=["first_block", "taylorseer"])
def cache(request: pytest.FixtureRequest) -> StepCache:
    chosen: StepCache = request.param
    return chosen


@pytest.fixture(scope="module")
def pipe(cache: StepCache) -> Any:
    return load(FLUX, cached(cache))


@pytest.fixture(scope="module")
def plain() -> Any:
    return load(FLUX)


def cached(cache: StepCache, **choices: Any) -> Plan:
    return plan({"transformer": ComponentPlan(**choices)}, step_cache=cache)


def drawn(pipe: Any, **arguments: Any) -> torch.Tensor:
    return picture(pipe, **{"num_inference_steps": STEPS, **arguments})


@contextmanager
def counted(layer: nn.Module) -> Iterator[list[int]]:
    """How often a layer is called."""
    calls = [0]
    handle = layer.register_forward_hook(lambda *_: calls.append(calls.pop() + 1))
    try:
        yield calls
    finally:
        handle.remove()


def test_steps_are_left_out_and_the_picture_is_nearly_kept(pipe: Any, plain: Any) -> None:
    with counted(pipe.transformer.transformer_blocks[1].attn) as calls:
        found = drawn(pipe)
    assert 0 < calls[0] < STEPS
    assert 0.0 < float((found - drawn(plain)).abs().mean()) < 0.1


def test_a_threshold_of_next_to_nothing_computes_every_step(plain: Any) -> None:
    exact = load(FLUX, cached(FirstBlockCache(threshold=1e-9)))
    assert torch.equal(drawn(exact), drawn(plain))


class Cancelled(Exception):
    """What an app raises where its user went away."""


def cancel(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
    if step == 3:
        raise Cancelled
    return values


def another_prompt(pipe: Any) -> None:
    drawn(pipe, prompt="a blue square", generator=torch.Generator().manual_seed(5))


def cancelled(pipe: Any) -> None:
    with pytest.raises(Cancelled):
        drawn(pipe, prompt="a blue square", callback_on_step_end=cancel)


def fewer_steps(pipe: Any) -> None:
    drawn(pipe, num_inference_steps=2)


def another_size(pipe: Any) -> None:
    drawn(pipe, width=96)


def a_batch(pipe: Any) -> None:
    drawn(pipe, prompt=["a blue square"] * 2)


@pytest.mark.parametrize("before", [another_prompt, cancelled, fewer_steps, another_size, a_batch])
def test_no_request_sees_the_one_before_it(pipe: Any, before: Callable[[Any], None]) -> None:
    wanted = drawn(pipe)
    before(pipe)
    assert torch.equal(drawn(pipe), wanted)


def test_calls_with_and_without_the_prompt_are_kept_apart(pipe: Any) -> None:
    """Guided away from its own prompt a picture is the same: unless one call of a step takes from
    the other's last step."""
    prompt = "a red circle"
    guided = drawn(pipe, prompt=prompt, negative_prompt=prompt, true_cfg_scale=4.0)
    assert float((guided - drawn(pipe, prompt=prompt)).abs().max()) < 1e-4
    away = drawn(pipe, prompt=prompt, negative_prompt="a blue square", true_cfg_scale=4.0)
    assert float((away - guided).abs().max()) > 1e-3


def test_quantized_weights_are_cached_alike(cache: StepCache, pipe: Any) -> None:
    int8 = load(FLUX, cached(cache, quantization=Quantization(scheme="int8_weight_only")))
    with counted(int8.transformer.transformer_blocks[1].attn) as calls:
        found = drawn(int8)
    assert 0 < calls[0] < STEPS
    assert 0.0 < float((found - drawn(pipe)).abs().mean()) < 0.1


def test_an_apps_pipeline_equals_a_loaded_one(cache: StepCache, pipe: Any) -> None:
    own = load(FLUX)
    engine.apply(own, cached(cache), CPU)
    assert torch.equal(drawn(own), drawn(pipe))


def test_a_step_alone_is_computed_whole_and_leaves_nothing_behind(pipe: Any, plain: Any) -> None:
    """What `sqnr_db` compares, in any order of the steps."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((args, kwargs, first_tensor(output).clone()))

    handle = plain.transformer.register_forward_hook(see, with_kwargs=True)
    drawn(plain)
    handle.remove()
    wanted = drawn(pipe)
    with torch.no_grad():
        for args, kwargs, output in reversed(seen):
            assert torch.equal(first_tensor(call_alone(pipe.transformer, args, kwargs)), output)
    assert torch.equal(drawn(pipe), wanted)


def test_a_cache_breaks_no_compiled_block() -> None:
    """As many graphs as without it, each whole; dynamo alone, without a compiler behind it."""
    graphs = [dynamo_graphs(chosen) for chosen in (None, FIRST_BLOCK, TAYLOR)]
    assert graphs[0] == graphs[1] == graphs[2] > 0


def dynamo_graphs(chosen: StepCache | None) -> int:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    own = load(FLUX)
    compiles = compile_forwards if chosen else type(own.transformer).compile_repeated_blocks
    compiles(own.transformer, backend="eager", fullgraph=True)
    enable_step_cache(own, plan(step_cache=chosen).pipeline, pipeline_modules(own))
    found = drawn(own)
    expected = drawn(load(FLUX, plan(step_cache=chosen)))
    assert float((found - expected).abs().max()) < 1e-4
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_pictures_of_other_pipelines_are_refused_with_the_plan_that_works() -> None:
    """FLUX's img2img does not say which call is which, and SDXL's denoiser offers no cache."""
    pipe = around(FLUX, "FluxImg2ImgPipeline")
    chosen = cached(FIRST_BLOCK)
    with pytest.raises(InvalidPlan, match=r"cache_context.*plan\.caching_steps\(None\)"):
        engine.apply(pipe, chosen, CPU)
    engine.apply(pipe, chosen.caching_steps(None), CPU)
    assert bool(torch.isfinite(picture(pipe, image=image(), strength=0.5)).all())
    with pytest.raises(InvalidPlan, match="0 denoisers that offer a step cache"):
        load(SDXL, plan(step_cache=FIRST_BLOCK))


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"placement": StreamedBlocks()}, "it must stay"),
        ({"compilation": Compilation(scope="whole")}, "compile it by regions"),
        (
            {"compilation": Compilation(scope="regional", mode="reduce-overhead")},
            "CUDA graph would repeat",
        ),
    ],
)
def test_what_a_cache_cannot_go_with_is_refused(choices: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidPlan, match=reason):
        load(FLUX, cached(FIRST_BLOCK, **choices))
