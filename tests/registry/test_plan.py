"""A plan may come from a stranger: what it cannot say is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.errors import InvalidPlan
from registry.plan import parse_plan


def with_options(options: dict[str, Any]) -> str:
    compilation = {"scope": "whole", "inductor_options": options}
    return json.dumps({"pipeline": {"components": {"unet": {"compilation": compilation}}}})


@pytest.mark.parametrize(
    "options", [{"cpp.cxx": "/bin/sh"}, {"freezing": "yes"}, {"shape_padding": 1}]
)
def test_inductor_options_beyond_the_allow_list_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidPlan, match=next(iter(options))) as error:
        parse_plan(with_options(options))
    assert error.value.exit_code == 2


def test_an_allowed_option_is_taken() -> None:
    plan = parse_plan(with_options({"freezing": True}))
    assert plan.pipeline.component("unet").compilation.inductor_options == {"freezing": True}


def with_quantization(**keys: Any) -> dict[str, Any]:
    return {"pipeline": {"components": {"transformer": {"quantization": keys}}}}


@pytest.mark.parametrize(
    "keys",
    [
        {"scheme": "mixed"},
        {"scheme": "mixed", "layers": {}},
        {"scheme": "int8_dynamic", "layers": {"*.to_q": "int8_dynamic"}},
        {"scheme": "mixed", "layers": {"*.to_q": "none"}},
        {"scheme": "mixed", "layers": {"*.to_q": "mixed"}},
        {"scheme": "mixed", "layers": {"import os": "int8_dynamic"}},
    ],
)
def test_a_mixed_quantization_names_layers_and_their_schemes(keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidPlan, match=r"mixed|layer pattern|layers"):
        parse_plan(with_quantization(**keys))


def test_the_most_specific_pattern_decides() -> None:
    layers = {"*.attn.to_*": "int8_dynamic", "*.attn.to_q": "float8_weight_only"}
    plan = parse_plan(with_quantization(scheme="mixed", layers=layers))
    chosen = plan.pipeline.component("transformer").quantization
    assert chosen.wanted("blocks.3.attn.to_q") == "float8_weight_only"
    assert chosen.wanted("blocks.3.attn.to_k") == "int8_dynamic"
    assert chosen.wanted("blocks.3.ff") == "none"
    assert parse_plan(plan.model_dump_json()).digest == plan.digest


def with_cache(cache: Any) -> dict[str, Any]:
    return {"pipeline": {"components": {}, "step_cache": cache}}


def test_a_plan_without_a_step_cache_is_what_it_was_before_there_were_any() -> None:
    plain = parse_plan({"pipeline": {"components": {}}})
    cached = parse_plan(with_cache({"kind": "first_block", "threshold": 0.12}))
    assert parse_plan(with_cache(None)).digest == plain.digest != cached.digest
    assert "step_cache" not in plain.model_dump_json()
    assert cached.caching_steps(None) == plain
    assert parse_plan(cached.model_dump_json()) == cached


@pytest.mark.parametrize(
    "cache",
    [
        {"kind": "first_block", "threshold": 0.0},
        {"kind": "first_block", "threshold": float("nan")},
        {"kind": "first_block", "threshold": 0.1, "interval_steps": 3},
        {"kind": "taylorseer", "interval_steps": 1},
        {"kind": "taylorseer", "interval_steps": 3, "warmup_steps": 0},
        {"kind": "mag"},
    ],
)
def test_a_step_cache_that_cannot_be_is_refused(cache: dict[str, Any]) -> None:
    with pytest.raises(InvalidPlan, match="step_cache"):
        parse_plan(with_cache(cache))
