from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from registry.errors import InvalidPlan
from registry.plan import ComponentPlan, ModelOffload
from tests.tuner.export.plans import CASES, Case, plan_of, script_of
from tuner.models import resolve_model
from tuner.pipeline.fuse import PARTS

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("data") / "flux-fp8-script.py.txt"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_option_is_in_its_script(case: Case) -> None:
    assert [text for text in case.expected if text not in case.script] == []
    assert imported(case.script).isdisjoint({"tuner", "registry"})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_definition_hides_another(case: Case) -> None:
    """Modules of the engine stand together in one script."""
    names = [name for node in ast.parse(case.script).body for name in _defined(node)]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [item.id for item in targets if isinstance(item, ast.Name)]


def imported(script: str) -> set[str]:
    """Top-level packages that a script imports. Raises SyntaxError."""
    compile(script, "script.py", "exec")
    found: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import):
            found |= {item.name.split(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_scripts_are_as_tidy_as_our_own_code(tmp_path: Path) -> None:
    for name, case in CASES.items():
        (tmp_path / f"{name}.py").write_text(case.script, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    # A script prints, reaches into modules as the hook does, and is no package.
    ignored = ["--ignore", "T201,SLF001,ARG002"]
    for command in (["check", *ignored, "--output-format=concise"], ["format", "--diff"]):
        done = subprocess.run(
            [*ruff, *command, *config, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_script_holds_only_what_its_plan_needs() -> None:
    lines = script_of(plan_of()).splitlines()
    assert len(lines) < 35
    for word in ("quantize", "torchao", "fuse", "hook", "compile", "os.environ", "nn"):
        assert not any(re.search(rf"\b{word}", line) for line in lines), word


def test_the_flux_fp8_script_is_the_one_reviewed() -> None:
    """After a change that is meant, write the new text into the golden file and read it."""
    assert CASES["fp8"].script == GOLDEN.read_text(encoding="utf-8")


def test_fused_parts_are_the_engines() -> None:
    space: dict[str, Any] = {}
    script = script_of(plan_of(fuse_qkv=True))
    constant = next(
        node
        for node in ast.parse(script).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FUSED"
    )
    exec(ast.unparse(constant), space)
    assert space["FUSED"] == PARTS


def test_without_an_inventory_denoisers_go_by_their_names() -> None:
    plan = plan_of(components={"unet": ComponentPlan()}, fuse_qkv=True)
    assert "fuse_qkv(pipe.unet)" in script_of(plan, inventory=None)
    unnamed = plan_of(components={"vae": ComponentPlan()}, fuse_qkv=True)
    assert "fuse_qkv(pipe.transformer)" in script_of(unnamed)
    with pytest.raises(InvalidPlan, match="denoiser"):
        script_of(unnamed, inventory=None)


def test_a_part_of_a_pipeline_cannot_be_offloaded_as_a_whole() -> None:
    mixed = {
        "transformer": ComponentPlan(placement=ModelOffload()),
        "vae": ComponentPlan(),
    }
    with pytest.raises(InvalidPlan, match="placed otherwise: vae"):
        script_of(plan_of(components=mixed))


def test_a_local_path_is_no_part_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    script = script_of(plan_of(), resolve_model(str(tmp_path)))
    assert str(tmp_path) not in script
    assert "sys.argv[1]" in script
    assert "MODEL_FOLDER" in str(ast.get_docstring(ast.parse(script)))
    shipped = script_of(plan_of(), resolve_model("shapes-flux"))
    assert "sys.argv[1]" in shipped
    assert "red circle" in shipped
    assert "lighthouse" not in shipped
    assert "weights_folder" in str(ast.get_docstring(ast.parse(shipped)))
    random = script_of(plan_of(), resolve_model("flux-dev", weights="random"))
    assert "random weights" in str(ast.get_docstring(ast.parse(random)))
