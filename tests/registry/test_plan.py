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
