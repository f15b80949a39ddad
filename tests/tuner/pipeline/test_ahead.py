"""Code compiled ahead of time: taken for the very calls that it was made of, and for no others."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

from registry.digest import canonical_json
from registry.plan import (
    Compilation,
    ComponentPlan,
    PipelineOptions,
    Placement,
    Plan,
    Resident,
    StreamedBlocks,
)
from tests.tuner.pipeline.ahead_block import Block, Scaled, called, inputs
from tests.tuner.pipeline.tiny import FLUX, load
from tuner.compiled_code import unpack
from tuner.pipeline.ahead import MOST_DESCRIPTIONS, MOST_FUNCTIONS, MOST_KEYS, Ahead, AheadCall
from tuner.pipeline.apply import apply
from tuner.pipeline.descriptions import describe_module
from tuner.pipeline.replaced import CodeSeen

CHILD = "tests.tuner.pipeline.ahead_child"
REGIONAL = Compilation(scope="regional")
TAKEN = ["same", "other_weights", "plain"]
CHANGED_LATER = "changed_later"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by a process that compiled a quantized block ahead of time."""
    root = tmp_path_factory.mktemp("ahead")
    child("save", root / "code.bin", root / "compile")
    return root / "code.bin"


def child(what: str, path: Path, folder: Path) -> str:
    command = [sys.executable, "-m", CHILD, what, str(path), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return done.stdout


def test_code_serves_the_calls_it_was_made_of_and_no_others(code: Path, tmp_path: Path) -> None:
    """In a fresh process, that compiles nothing."""
    told: dict[str, Any] = json.loads(child("use", code, tmp_path / "code"))
    assert told.pop(CHANGED_LATER) == [1, 1, 0.0]
    assert [name for name, (hits, _, _) in told.items() if hits] == TAKEN
    assert all(hits + misses == 1 for hits, misses, _ in told.values())
    assert {name: off for name, (_, _, off) in told.items() if off > 1e-6} == {}


def test_a_function_is_part_of_the_compiled_code(code: Path) -> None:
    kinds = [part.kind for part in unpack(code.read_bytes()).parts]
    assert kinds.count("function") == 1
    assert {"graph", "library"} <= set(kinds)


def attached(ahead: Ahead, plan: Compilation = REGIONAL) -> Block:
    """A block whose compiled call is its eager one."""
    block = Block()
    block._compiled_call_impl = block._call_impl
    ahead.attach(block, plan)
    return block


def key_of_the_call() -> str:
    ahead = Ahead({"0" * 64: b""})
    called(attached(ahead), inputs())
    (key,) = ahead.misses
    return key


def test_code_that_fails_is_given_up_once_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also what a trusted key signed may be of another torch."""
    ahead = Ahead({key_of_the_call(): b"no pickle"})
    caplog.clear()
    block = attached(ahead)
    expected = called(Block(), inputs())
    assert ahead.is_offered
    for _ in range(2):
        assert torch.equal(called(block, inputs()), expected)
    assert (ahead.is_offered, ahead.hits) == (False, set())
    assert [line.getMessage() for line in caplog.records if line.name == "tuner"] == [
        f"code compiled ahead of time is not used: {ahead.failure}"
    ]


def test_a_full_device_is_no_reason_to_give_up() -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    ahead = Ahead({key_of_the_call(): b""})
    ahead._loaded[key_of_the_call()] = full
    with pytest.raises(torch.OutOfMemoryError):
        called(attached(ahead), inputs())
    assert ahead.is_offered


@pytest.mark.parametrize(
    "plan",
    [
        Compilation(scope="whole"),
        Compilation(scope="regional", dynamic=True),
        Compilation(scope="regional", mode="max-autotune"),
    ],
)
def test_plans_that_cannot_be_compiled_ahead_are_left(plan: Compilation) -> None:
    ahead = Ahead(is_recording=True)
    called(attached(ahead, plan), inputs())
    assert ahead.compile_ahead() == ()


def test_too_many_kinds_of_calls_are_not_compiled_ahead(caplog: pytest.LogCaptureFixture) -> None:
    ahead = Ahead(is_recording=True)
    block = attached(ahead)
    for times in range(MOST_FUNCTIONS + 1):
        called(block, {**inputs(), "times": times})
    assert ahead.compile_ahead() == ()
    assert "too many calls differ" in caplog.text


def test_what_torch_cannot_compile_ahead_leaves_the_cache(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no\nof course")

    ahead = Ahead(is_recording=True)
    called(attached(ahead), inputs())
    monkeypatch.setattr(torch, "compile", no_compiler)
    with caplog.at_level(logging.WARNING, "tuner"):
        assert ahead.compile_ahead() == ()
    assert "nothing is compiled ahead of time: no" in caplog.messages


def test_blocks_of_a_kind_are_described_alike_and_others_not() -> None:
    pipe = load(FLUX)
    model = pipe.transformer
    (first, second), other = model.transformer_blocks[:2], model.single_transformer_blocks[0]
    assert describe_module(first, CodeSeen())[0] == describe_module(second, CodeSeen())[0]
    assert describe_module(first, CodeSeen())[0] != describe_module(other, CodeSeen())[0]
    assert describe_module(model, CodeSeen())[1].holds


def other_weights(block: Block) -> None:
    block.linear.weight = nn.Parameter(torch.zeros(32, 32))


def other_dtype(block: Block) -> None:
    block.to(torch.bfloat16)


def other_layers(block: Block) -> None:
    block.linear = nn.Linear(32, 32)


def other_class(block: Block) -> None:
    block.scaled.__class__ = type("Scaled", (type(block.scaled),), {})


def one_hook(block: Block) -> None:
    block.scaled.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change", [other_weights, other_dtype, other_layers, other_class, one_hook]
)
def test_a_description_holds_until_something_changes(change: Callable[[Block], None]) -> None:
    block = Block()
    _, watch = describe_module(block, CodeSeen())
    called(block, inputs())
    block.linear.bias.data.zero_()
    assert watch.holds
    change(block)
    assert not watch.holds


def test_calls_that_are_timed_pass_through_nothing_that_records() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(2, 2))
    block.compile(backend="eager")
    compiled = block._compiled_call_impl
    ahead = Ahead(is_recording=True)
    ahead.attach(block, Compilation(scope="regional", dynamic=False))
    assert isinstance(block._compiled_call_impl, AheadCall)
    ahead.stop_recording()
    assert block._compiled_call_impl is compiled


def twice(value: torch.Tensor) -> torch.Tensor:
    return value * 2


def test_a_method_that_an_app_replaces_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch's guards would see it."""
    ahead = Ahead({key_of_the_call(): b""})
    ahead._loaded[key_of_the_call()] = lambda *_, **__: torch.zeros(1)
    block = attached(ahead)
    assert called(block, inputs()).shape == (1,)
    monkeypatch.setattr(Scaled, "forward", lambda _, value: value + 7)
    assert torch.equal(called(block, inputs()), called(Block(), inputs()))
    assert not ahead.is_offered
    assert "code compiled ahead of time is not used: Scaled.forward was replaced" in caplog.messages


def test_a_function_that_an_app_replaces_is_seen_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CodeSeen()
    before = seen.of_class(FluxAttnProcessor)
    assert seen.replaced() is None
    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", twice)
    assert seen.replaced() == "diffusers.models.attention_dispatch.dispatch_attention_fn"
    assert CodeSeen().of_class(FluxAttnProcessor) != before


def test_a_block_that_cannot_be_described_is_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An adapter or a hook stays for many calls. Here it is a method of the app's."""
    seen = count_descriptions(monkeypatch)
    block = attached(Ahead(is_recording=True))
    called(block, inputs())
    block.forward = MethodType(plain, block)  # type: ignore[method-assign]
    for _ in range(3):
        called(block, inputs())
    assert len(seen) == 2


def plain(_block: Block, value: torch.Tensor, *, offset: torch.Tensor) -> torch.Tensor:
    return value + offset


def test_a_block_that_changes_at_each_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    count = count_descriptions(monkeypatch)
    block = attached(Ahead(is_recording=True))
    for factor in range(2 * MOST_DESCRIPTIONS):
        block.scaled.factor = 1000.5 + factor
        called(block, inputs())
    assert len(count) == MOST_DESCRIPTIONS + 1


def test_a_block_that_changes_now_and_then_keeps_its_function() -> None:
    """As by an adapter's scale, which an app sets back."""
    key = key_of_the_call()
    ahead = Ahead({key: b""})
    ahead._loaded[key] = lambda *_, **__: torch.zeros(1)
    block = attached(ahead)
    usual = block.scaled.factor
    for factor in range(2 * MOST_DESCRIPTIONS):
        block.scaled.factor = 1000.5 + factor
        assert called(block, inputs()).shape != (1,)
        block.scaled.factor = usual
        assert called(block, inputs()).shape == (1,)


def test_a_block_that_is_left_alone_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    ahead = Ahead({"0" * 64: b""})
    for block in (attached(ahead), attached(ahead)):
        block.register_forward_hook(lambda *_: None)
        called(block, inputs())
    line = "a Block is compiled as always from now on: it holds a hook"
    assert caplog.messages.count(line) == 1


def test_calls_that_all_differ_leave_no_more_keys_than_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In each of two blocks."""
    ahead = Ahead({"0" * 64: b""})
    for block in (attached(ahead), attached(ahead)):
        for times in range(MOST_KEYS):
            called(block, {**inputs(), "times": times, "offset": inputs()["offset"] + 0})
        block.scaled.factor = 9.5
        assert called(block, inputs()).shape == inputs()["value"].shape
    assert (len(ahead.called), len(ahead.misses)) == (MOST_KEYS, MOST_KEYS)
    assert caplog.messages.count("a call is not looked up: too many differ") == 1


def test_a_thread_that_meets_a_change_takes_no_key_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It calls while the other one, which saw the change first, makes its description."""
    ahead = Ahead(is_recording=True)
    block = attached(ahead)
    called(block, inputs())
    before = set(ahead.called)
    block.scaled.factor = 5.5

    def meanwhile(value: Any) -> bytes:
        monkeypatch.setattr("tuner.pipeline.ahead.canonical_json", canonical_json)
        called(block, inputs())
        return canonical_json(value)

    monkeypatch.setattr("tuner.pipeline.ahead.canonical_json", meanwhile)
    called(block, inputs())
    assert len(ahead.called - before) == 1
    call: Any = block._compiled_call_impl
    assert not set(call._known.keys.values()) & before


@pytest.mark.parametrize(("placement", "blocks"), [(Resident(), True), (StreamedBlocks(), False)])
def test_blocks_whose_tensors_change_places_are_compiled_as_always(
    placement: Placement, *, blocks: bool
) -> None:
    pipe = load(FLUX)
    component = ComponentPlan(placement=placement, compilation=REGIONAL)
    plan = Plan(pipeline=PipelineOptions(dtype="float32", components={"transformer": component}))
    ahead = Ahead(is_recording=True)
    apply(pipe, plan, torch.device("cpu"), ahead=ahead)
    calls = [part._compiled_call_impl for part in pipe.transformer.modules()]
    assert any(isinstance(call, AheadCall) for call in calls) is blocks


def count_descriptions(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    seen: list[nn.Module] = []

    def counted(module: nn.Module, code: CodeSeen) -> Any:
        seen.append(module)
        return describe_module(module, code)

    monkeypatch.setattr("tuner.pipeline.ahead.describe_module", counted)
    return seen


@pytest.mark.parametrize(
    "plan",
    [
        Compilation(scope="regional", inductor_options={"epilogue_fusion": False}),
        Compilation(scope="regional", mode="max-autotune-no-cudagraphs"),
    ],
)
def test_a_plan_that_compiles_otherwise_has_other_keys(plan: Compilation) -> None:
    one, other = Ahead(is_recording=True), Ahead(is_recording=True)
    called(attached(one), inputs())
    called(attached(other, plan), inputs())
    assert len(one.called) == len(other.called) == 1
    assert one.called != other.called
