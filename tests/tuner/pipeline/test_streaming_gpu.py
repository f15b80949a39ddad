"""Streamed blocks on a GPU: the residents' result, no recompilation, memory as predicted, and
copies that never let a block compute on another's weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from registry.plan import Compilation, ComponentPlan, Placement, Quantization, Resident
from registry.plan import StreamedBlocks as Streamed
from tests.tuner.pipeline.tiny import FLUX, SDXL, difference, picture, plan
from tuner.pipeline import apply as engine
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.load import materialise
from tuner.pipeline.quantize import layer_types
from tuner.pipeline.streaming import StreamReport, stream_blocks
from tuner.pipeline.weights import RandomWeights

pytestmark = pytest.mark.gpu

DOUBLE, SINGLE = 4, 8
WIDTH_OF_FLUX = {"attention_head_dim": 128, "num_attention_heads": 24}
PICTURE, TEXT = 256, 64
ROUNDING = 0.02
SPARE_BYTES = 64 * 2**20
"""cuBLAS's workspace and what the allocator rounds."""


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def schemes() -> list[Any]:
    """Those this GPU can run, weight-only ones first."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    dynamic = ["float8_dynamic_row"] if capability >= (8, 9) else []
    return ["none", "int8_weight_only", *dynamic]


def transformer(scheme: Any, placement: Placement) -> Any:
    """Blocks of FLUX's real width, few of them, as a plan of this placement loads them."""
    from diffusers import FluxTransformer2DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model: Any = FluxTransformer2DModel(
                num_layers=DOUBLE, num_single_layers=SINGLE, guidance_embeds=True, **WIDTH_OF_FLUX
            )
    finally:
        torch.set_default_dtype(before)
    model.eval()
    quantization = Quantization()
    if scheme != "none":
        quantization = Quantization(scheme=scheme, min_features=1024, skip=("proj_out",))
    chosen = ComponentPlan(quantization=quantization, placement=placement)
    source = RandomWeights("transformer", 0)
    materialise("transformer", model, source, chosen, cuda(), engine.nothing_done)
    return model


def stream(model: Any, placement: Streamed) -> StreamReport:
    return stream_blocks(
        model, cuda(), resident_blocks=placement.resident_blocks, slots=placement.slots
    )


def inputs(tokens: int = PICTURE) -> dict[str, Any]:
    made = torch.Generator(device=cuda()).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, device=cuda(), dtype=torch.bfloat16)

    return {
        "hidden_states": noise(1, tokens, 64),
        "encoder_hidden_states": noise(1, TEXT, 4096),
        "pooled_projections": noise(1, 768),
        "timestep": torch.tensor([0.5], device=cuda(), dtype=torch.bfloat16),
        "guidance": torch.tensor([3.5], device=cuda()),
        "img_ids": torch.zeros(tokens, 3, device=cuda(), dtype=torch.bfloat16),
        "txt_ids": torch.zeros(TEXT, 3, device=cuda(), dtype=torch.bfloat16),
        "return_dict": False,
    }


@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.parametrize("resident", [0, 5])
def test_results_are_the_residents_to_the_bit(scheme: Any, resident: int) -> None:
    """Many steps without waiting for the device in between: a copy that came too early would
    show."""
    wanted = transformer(scheme, Resident())(**inputs())[0].clone()
    assert bool(torch.isfinite(wanted).all())
    placement = Streamed(resident_blocks=resident)
    model = transformer(scheme, placement)
    report = stream(model, placement)
    assert report.host_bytes > 0
    results = [model(**inputs())[0] for _ in range(8)]
    assert all(torch.equal(item, wanted) for item in results)


@pytest.mark.parametrize("scheme", schemes())
def test_compiled_blocks_are_not_compiled_again(scheme: Any) -> None:
    """From the second call on all results are the same to the bit. The first may have rounded
    otherwise, as it may where everything is resident: a graph compiled late in it may from then on
    serve blocks that an earlier one served, and Inductor picks kernels by timing them."""
    eager = transformer(scheme, Resident())(**inputs())[0].clone()
    placement = Streamed(resident_blocks=3)
    model = transformer(scheme, placement)
    stream(model, placement)
    model.compile_repeated_blocks(fullgraph=True)
    first = model(**inputs())[0].clone()
    graphs = compile_counters()["graphs"]
    assert 2 <= graphs <= 4
    results = [model(**inputs())[0].clone() for _ in range(7)]
    assert all(torch.equal(item, results[0]) for item in results)
    assert compile_counters()["graphs"] == graphs
    assert compile_counters()["graph_breaks"] == 0
    assert error(first, eager) < 0.2
    assert error(results[0], eager) < 0.2


def test_a_side_stream_of_the_apps_own_and_a_new_batch() -> None:
    placement = Streamed()
    resident, model = transformer("none", Resident()), transformer("none", placement)
    stream(model, placement)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    for tokens in (PICTURE, 64, PICTURE):
        wanted = resident(**inputs(tokens))[0]
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            found = model(**inputs(tokens))[0]
        torch.cuda.current_stream().wait_stream(other)
        assert error(found, wanted) < ROUNDING
        assert error(model(**inputs(tokens))[0], wanted) < ROUNDING


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative; of other weights' results it is near 1 or above. Libraries promise equal bits on
    one stream only."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def test_after_a_call_that_failed_the_next_one_is_right() -> None:
    placement = Streamed()
    wanted = transformer("none", Resident())(**inputs())[0].clone()
    model = transformer("none", placement)
    stream(model, placement)
    hook = model.transformer_blocks[2].register_forward_pre_hook(_fail)
    with pytest.raises(ArithmeticError):
        model(**inputs())
    hook.remove()
    for _ in range(2):
        assert torch.equal(model(**inputs())[0], wanted)


def _fail(*_: Any) -> None:
    raise ArithmeticError("as asked")


@pytest.mark.parametrize("resident", [0, 6])
def test_the_device_holds_what_was_said_and_no_more(resident: int) -> None:
    """Weights at rest: what is outside of the blocks, the resident ones, and the slots."""
    placement = Streamed(resident_blocks=resident)
    base = torch.cuda.memory_allocated()
    model = transformer("none", placement)
    report = stream(model, placement)
    gc.collect()
    whole = sum(item.nbytes for item in transformer_bytes())
    at_rest = torch.cuda.memory_allocated() - base
    assert at_rest <= whole - report.host_bytes + report.slot_bytes + SPARE_BYTES
    model(**inputs())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(4):
        model(**inputs())
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + SPARE_BYTES


def transformer_bytes() -> list[torch.Tensor]:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(
            num_layers=DOUBLE, num_single_layers=SINGLE, guidance_embeds=True, **WIDTH_OF_FLUX
        )
    return [*model.to(torch.bfloat16).parameters()]


def test_host_memory_is_page_locked_and_given_back() -> None:
    placement = Streamed()
    model = transformer("none", placement)
    stream(model, placement)
    block = model.transformer_blocks[0]
    run = block.__dict__["_host_run"]
    assert run.is_pinned()
    alive = weakref.ref(run)
    del run, block, model
    gc.collect()
    assert alive() is None
    # Giving it back left no error behind, which the next launch would report.
    assert float(torch.ones(1, device=cuda()).add_(1)) == 2.0


@pytest.mark.parametrize("scope", ["none", "regional"])
@pytest.mark.parametrize(("spec", "component"), [(FLUX, "transformer"), (SDXL, "unet")])
def test_pipelines(spec: Any, component: str, scope: Any) -> None:
    own = ComponentPlan(
        quantization=Quantization(scheme="float8_weight_only", min_features=64),
        compilation=Compilation(scope=scope),
    )
    resident = engine.load(spec, plan({component: own}, dtype="bfloat16"), cuda())
    wanted = picture(resident)
    chosen = own.model_copy(update={"placement": Streamed(resident_blocks=1)})
    pipe = engine.load(spec, plan({component: chosen}, dtype="bfloat16"), cuda())
    for _ in range(2):
        assert difference(picture(pipe), wanted) < ROUNDING
    assert layer_types(getattr(pipe, component)) == layer_types(getattr(resident, component))
    assert {item.device.type for item in getattr(pipe, component).parameters()} == {"cuda"}
