"""Kinds of blocks and their keys follow from an inventory alone."""

from __future__ import annotations

import pytest

from registry.plan import Quantization
from registry.timing import Timing
from registry.workload import Shape
from tests.tuner.flux import denoiser, h200, quantization, runtime, shipped
from tuner.activities import profile_for
from tuner.block_kinds import Bench, BlockKind, block_kinds

BENCH = Bench(h200(), "bfloat16")


def kinds(name: str, shape: Shape | None = None) -> tuple[BlockKind, ...]:
    inventory = shipped(name)
    profile = inventory.profiles[0] if shape is None else profile_for(inventory, shape)
    activity = profile.activity(inventory.denoiser.name)
    assert activity is not None
    return block_kinds(inventory.denoiser, activity)


def test_flux_is_two_kinds_of_blocks() -> None:
    double, single = kinds("flux-dev")
    assert (double.class_name, len(double.names)) == ("FluxTransformerBlock", 19)
    assert (single.class_name, len(single.names)) == ("FluxSingleTransformerBlock", 38)
    assert double.shape == (1, 4096, 512)
    assert single.shape == (1, 4608, 0)


def test_blocks_of_one_class_that_see_other_pictures_are_other_kinds() -> None:
    """SDXL: 640 channels of 64² pixels, and 1280 of 32²; guidance doubles the batch."""
    wide, narrow = sorted(kinds("sdxl"), key=lambda kind: len(kind.names))
    assert {wide.class_name, narrow.class_name} == {"BasicTransformerBlock"}
    assert (wide.shape, narrow.shape) == ((2, 4096, 77), (2, 1024, 77))
    assert (len(wide.names), len(narrow.names)) == (10, 60)


def test_every_block_is_of_one_kind() -> None:
    for name in ("flux-dev", "sdxl", "tiny-flux", "tiny-sdxl"):
        named = [block for item in shipped(name).denoiser.repeated_blocks for block in item.names]
        assert sorted(named) == sorted(block for kind in kinds(name) for block in kind.names)


def test_a_model_without_repeated_blocks_has_no_kinds() -> None:
    inventory = denoiser(repeated_blocks=())
    activity = inventory.profiles[0].activity("transformer")
    assert activity is not None
    assert block_kinds(inventory.denoiser, activity) == ()


def test_a_key_says_which_layers_are_quantized_how() -> None:
    double = kinds("flux-dev")[0]
    light, full = (
        BENCH.block(double, double.schemes(quantization("float8_dynamic_row", light=light)))
        for light in (True, False)
    )
    assert light.scheme == full.scheme == "float8_dynamic_row"
    assert light.name != full.name
    mixed = Quantization(
        scheme="mixed", layers={"*.to_q": "int8_dynamic", "*.ff.*": "int8_weight_only"}
    )
    assert BENCH.block(double, double.schemes(mixed)).scheme == "mixed"


def test_a_scheme_that_touches_nothing_has_the_plain_key() -> None:
    """640 features are under the least that is quantized: the same block, timed once."""
    wide = min(kinds("sdxl"), key=lambda kind: len(kind.names))
    chosen = wide.schemes(quantization("int8_dynamic"))
    assert BENCH.block(wide, chosen) == BENCH.block(wide)


def test_keys_differ_where_times_do() -> None:
    double, single = kinds("flux-dev")
    keys = {
        BENCH.block(double),
        BENCH.block(single),
        BENCH.block(double, context="eager"),
        BENCH.block(double, backend="_native_cudnn"),
        Bench(h200(), "float16").block(double),
        Bench(h200(torch="2.12.0"), "bfloat16").block(double),
        BENCH.block(kinds("flux-dev", Shape(height=512, width=512))[0]),
        BENCH.linear(double.layers[0], 4096, "none"),
        BENCH.linear(double.layers[0], 4096, "int8_dynamic"),
    }
    assert len(keys) == 9
    assert len({key.digest for key in keys}) == 9
    assert runtime().digest == h200().runtime.digest


def test_a_time_is_there_where_something_was_timed_and_nowhere_else() -> None:
    key = BENCH.block(kinds("flux-dev")[0])
    assert Timing(key=key, outcome="measured", median_ms=1.5, mad_ms=0.0, samples=7).median_ms
    assert Timing(key=key, outcome="failed", samples=0, message="no kernel").median_ms is None
    for wrong in (
        {"outcome": "failed", "median_ms": 1.0, "mad_ms": 0.1, "samples": 3},
        {"outcome": "measured", "samples": 3},
        {"outcome": "measured", "median_ms": float("inf"), "mad_ms": 0.0, "samples": 3},
        {"outcome": "noisy", "median_ms": 0.0, "mad_ms": 0.0, "samples": 3},
    ):
        with pytest.raises(ValueError, match=r"median_ms|mad_ms"):
            Timing.model_validate({"key": key, **wrong})
