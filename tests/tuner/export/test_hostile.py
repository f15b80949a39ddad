"""What a stranger may have written into a plan, a model's name or a prompt."""

from __future__ import annotations

import ast

import pytest

from registry.errors import InvalidInput
from registry.plan import ComponentPlan, Plan
from registry.workload import ModelRef
from tests.tuner.export.plans import plan_of, script_of
from tuner.model_spec import ModelSpec

HOSTILE = (
    '"""\nimport os; os.abort()\n"""',
    "'''\nimport os; os.abort()",
    'x"); import os; os.abort(); ("',
    "x\\",
    "x\r\nimport os; os.abort()\r\n#",
    "{__import__('os').abort()}",
    "\u2028import os\x0c\x00\ud800\u202e",
    "%s {} {0!r} \\N{BULLET} \\x41",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    ref = ModelRef(name=text, source="hub", revision=text)
    script = script_of(plan_of(), ModelSpec(ref=ref, hub_id=text), prompt=text)
    assert shape_of(script) == shape_of(script_of(plan_of(), steps=None, prompt="x", model=HUB))
    strings = [n.value for n in ast.walk(ast.parse(script)) if isinstance(n, ast.Constant)]
    assert strings.count(text) == 3
    script.encode("utf-8")


HUB = ModelSpec(ref=ModelRef(name="a/b", source="hub", revision="c"), hub_id="a/b")


def shape_of(script: str) -> list[str]:
    """The kinds of a script's syntax nodes: what it does, whatever its strings say."""
    compile(script, "script.py", "exec")
    return [type(node).__name__ for node in ast.walk(ast.parse(script))]


@pytest.mark.parametrize("name", [*HOSTILE, "os, sys", "a.b", "class", "Ünicode", "", "x\n"])
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a name"):
        script_of(plan_of(), pipeline_class=name)
    forged = Plan.model_construct(
        pipeline=plan_of().pipeline.model_copy(
            update={"components": {name: ComponentPlan(channels_last=True)}}
        )
    )
    with pytest.raises(InvalidInput, match="cannot be a name"):
        script_of(forged, inventory=None)
