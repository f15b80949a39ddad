"""Single blocks and layers of the tiny models, timed on the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import InvalidInput
from registry.plan import LayerScheme, Quantization
from registry.timing import Timing
from tests.tuner.fake_worker import CPU as DETECTED
from tests.tuner.fake_worker import ENVIRONMENT
from tests.tuner.pipeline.tiny import CPU, FLUX, SDXL, SHAPE, load
from tuner import catalog
from tuner.block_kinds import Bench, BlockKind, block_kinds
from tuner.model_spec import ModelSpec
from tuner.pipeline import stopwatch
from tuner.pipeline.block_inputs import BlockShop
from tuner.pipeline.block_timing import sharing_copy
from tuner.pipeline.layer_timing import Activations, layer_contestant
from tuner.pipeline.quantize import quantize_layer
from tuner.pipeline.scoring import sqnr_db
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.stopwatch import Contestant, Stopwatch
from tuner.pipeline.timing_job import time_targets
from tuner.protocol import Event, TimingDone, TimingJob, TimingResult, TimingTarget
from tuner.runner import Limits, Runner

ROOT = Path(__file__).parents[3]
BENCH = Bench(ENVIRONMENT, "float32")
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"


def kinds_of(spec: ModelSpec) -> tuple[BlockKind, ...]:
    inventory = catalog.shipped_inventory(spec.ref.name)
    assert inventory is not None
    activity = inventory.profiles[0].activity(inventory.denoiser.name)
    assert activity is not None
    return block_kinds(inventory.denoiser, activity)


def block_target(kind: BlockKind, scheme: LayerScheme = "none", **options: Any) -> TimingTarget:
    skip = ("norm*.linear", "*.norm*.linear")
    chosen = Quantization() if scheme == "none" else Quantization(scheme=scheme, skip=skip)
    layers = kind.schemes(chosen)
    key = BENCH.block(kind, layers, **options)
    return TimingTarget(key=key, path=kind.names[0], shape=SHAPE, layers=dict(layers))


def layer_target(kind: BlockKind, name: str, scheme: LayerScheme = "none") -> TimingTarget:
    found = {kind.inside(layer): at for at, layer in enumerate(kind.layers)}
    layer, rows = kind.layers[found[name]], kind.rows[found[name]]
    key = BENCH.linear(layer, rows, scheme)
    return TimingTarget(key=key, path=kind.names[0], shape=SHAPE)


def job(spec: ModelSpec, targets: Sequence[TimingTarget], **options: Any) -> TimingJob:
    return TimingJob(
        model=spec,
        targets=tuple(targets),
        dtype="float32",
        budget_bytes=2**32,
        rounds=2,
        compile_cache_dir=options.pop("compile_cache_dir", "unused"),
        **options,
    )


def timed(spec: ModelSpec, *targets: TimingTarget) -> list[Timing]:
    found: list[Timing] = []
    time_targets(job(spec, targets), CPU, lambda done: found.append(done.timing), lambda *_: None)
    return found


@pytest.fixture(autouse=True)
def own_compile_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.mark.parametrize("spec", [FLUX, SDXL], ids=["flux", "sdxl"])
def test_every_kind_of_block_is_timed_without_its_model(spec: ModelSpec) -> None:
    """Eager, so that nothing is compiled; each key is there twice: at once, then after rounds."""
    targets = [block_target(kind, context="eager") for kind in kinds_of(spec)]
    targets += [block_target(kind, "int8_weight_only", context="eager") for kind in kinds_of(spec)]
    found = timed(spec, *targets)
    assert {item.key for item in found} == {target.key for target in targets}
    assert len(found) == 2 * len(targets)
    for item in found:
        assert item.outcome in ("measured", "noisy")
        assert item.median_ms is not None
        assert 0.01 < item.median_ms < 1000


def test_a_compiled_block_and_layers_beside_it() -> None:
    single = next(kind for kind in kinds_of(FLUX) if kind.names[0] == SINGLE)
    block = block_target(single)
    plain, quantized = (layer_target(single, "proj_mlp", s) for s in ("none", "int8_dynamic"))
    found = {item.key: item for item in timed(FLUX, block, plain, quantized)}
    assert set(found) == {block.key, plain.key, quantized.key}
    assert found[plain.key].sqnr_db is None
    assert 25 < (found[quantized.key].sqnr_db or 0) < 60
    times = {key: item.median_ms for key, item in found.items()}
    assert times[plain.key] < times[block.key]  # type: ignore[operator]


def test_a_choice_that_fails_is_told_and_the_next_is_timed() -> None:
    double = kinds_of(FLUX)[0]
    missing = block_target(double, "float8_dynamic_row", context="eager")
    first, *rest = timed(FLUX, missing, block_target(double, context="eager"))
    assert first.key == missing.key
    assert (first.outcome, first.median_ms) == ("unsupported", None)
    assert "torchao cannot quantize" in first.message
    assert {item.outcome for item in rest} <= {"measured", "noisy"}
    assert len(rest) == 2


def test_what_was_timed_was_said_before_the_next_began() -> None:
    """A job that is ended at any moment keeps what it had."""
    heard: list[TimingDone] = []

    class EndedError(BaseException):
        pass

    def report(phase: str, done: int, total: int, detail: str) -> None:
        if done == 1:
            raise EndedError

    double = kinds_of(FLUX)[0]
    schemes: tuple[LayerScheme, ...] = ("none", "int8_dynamic")
    targets = [block_target(double, scheme, context="eager") for scheme in schemes]
    with pytest.raises(EndedError):
        time_targets(job(FLUX, targets), CPU, heard.append, report)
    assert [done.timing.key for done in heard] == [targets[0].key]


def test_a_block_that_the_model_does_not_have() -> None:
    wrong = block_target(kinds_of(FLUX)[0]).model_copy(update={"path": "transformer_blocks.99"})
    with pytest.raises(InvalidInput, match=r"no block 'transformer_blocks\.99'"):
        timed(FLUX, wrong)


@pytest.fixture(scope="module")
def shop() -> BlockShop:
    return BlockShop(build_skeleton(FLUX, torch.float32), FLUX, (DOUBLE, SINGLE), (SHAPE,))


@pytest.fixture(scope="module")
def double(shop: BlockShop) -> nn.Module:
    return shop.block(DOUBLE, CPU)


def test_a_single_block_is_the_models_own(double: nn.Module) -> None:
    whole = load(FLUX).transformer.get_submodule(DOUBLE)
    ours, theirs = dict(double.named_parameters()), dict(whole.named_parameters())
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_inputs_have_the_shapes_of_a_real_request(shop: BlockShop) -> None:
    seen: dict[str, Any] = {}
    pipe = load(FLUX)
    block = pipe.transformer.get_submodule(DOUBLE)
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.setdefault("call", (args, kwargs)), with_kwargs=True
    )
    arguments = {"height": 64, "width": 64, "num_inference_steps": 1, "max_sequence_length": 32}
    with torch.no_grad():
        pipe("a picture", **arguments)
    ours, theirs = (
        [item for item in torch.utils._pytree.tree_leaves(call) if isinstance(item, torch.Tensor)]
        for call in (shop.arguments(DOUBLE, SHAPE, CPU), seen["call"])
    )
    assert [(item.shape, item.dtype) for item in ours] == [(t.shape, t.dtype) for t in theirs]


def test_what_layers_see_is_what_the_inventory_counted(shop: BlockShop, double: nn.Module) -> None:
    activations = Activations(double, shop.arguments(DOUBLE, SHAPE, CPU))
    kind = kinds_of(FLUX)[0]
    assert {name: rows.shape[0] for name, rows in activations.inputs.items()} == {
        kind.inside(layer): rows for layer, rows in zip(kind.layers, kind.rows, strict=True)
    }


def test_a_copy_shares_what_its_choice_leaves_alone(double: nn.Module) -> None:
    before = {name: item.clone() for name, item in double.named_parameters()}
    copied = sharing_copy(double)
    query = copied.get_submodule("attn.to_q")
    assert isinstance(query, nn.Linear)
    quantize_layer("attn.to_q", query, "int8_weight_only")
    for name, item in double.named_parameters():
        assert torch.equal(item, before[name])
        is_shared = copied.get_parameter(name).data_ptr() == item.data_ptr()
        assert is_shared is (name != "attn.to_q.weight"), name


def test_the_score_of_a_shape_is_its_worst_layers(shop: BlockShop, double: nn.Module) -> None:
    activations = Activations(double, shop.arguments(DOUBLE, SHAPE, CPU))
    kind = kinds_of(FLUX)[0]
    target = layer_target(kind, "attn.to_q", "int8_dynamic")
    contestant = layer_contestant(activations, target, Stopwatch(CPU))
    contestant.take_sample()
    scores = []
    for name in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"):
        layer, rows = activations.layers[name], activations.inputs[name]
        packed = sharing_copy(layer)
        quantize_layer(name, packed, "int8_dynamic")
        with torch.no_grad():
            scores.append(sqnr_db(layer(rows), packed(rows)))
    assert contestant.timing().sqnr_db == pytest.approx(min(scores))
    assert max(scores) > min(scores)


class _Watch(Stopwatch):
    """Tells given times, a burst of each contestant in turn."""

    def __init__(self, times_ms: Sequence[float]) -> None:
        super().__init__(CPU)
        self._times = iter(times_ms)

    def burst_ms(self, call: stopwatch.Call, count: int) -> float:
        del call
        return 0.0 if count == 1 else next(self._times)


@pytest.mark.parametrize(
    ("times_ms", "outcome"),
    [((10.0, 10.1, 9.9, 10.0, 14.0), "measured"), ((10.0, 14.0, 8.0, 11.0, 17.0), "noisy")],
)
def test_a_spread_of_more_than_a_twentieth_is_noise(
    times_ms: tuple[float, ...], outcome: str
) -> None:
    key = block_target(kinds_of(FLUX)[0]).key
    contestant = Contestant(key, lambda: None, _Watch(times_ms), units=2)
    stopwatch.race([contestant], len(times_ms))
    found = contestant.timing()
    assert (found.outcome, found.samples) == (outcome, len(times_ms))
    assert found.median_ms == median(times_ms) / 2


def test_a_worker_streams_timings_and_ends(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    runner = Runner(sys.executable, DETECTED, None, tmp_path, environ=environ)
    heard: list[Event] = []
    targets = [block_target(kind, context="eager") for kind in kinds_of(SDXL)]
    asked = job(SDXL, targets, compile_cache_dir=str(tmp_path / "compile"))
    outcome = runner.run(asked, Limits(wall_s=300, progress_s=300), heard.append)
    assert isinstance(outcome.result, TimingResult), outcome.log_path.read_text()
    assert outcome.result.timed == len(targets)
    timings = [event.timing for event in heard if isinstance(event, TimingDone)]
    assert {item.key for item in timings} == {target.key for target in targets}
