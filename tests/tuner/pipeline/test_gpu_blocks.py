"""Blocks of FLUX timed on a GPU, and a mixture of schemes that only a GPU runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from registry.plan import (
    AttentionBackend,
    Compilation,
    ComponentPlan,
    LayerScheme,
    Quantization,
)
from registry.timing import Timing, TimingKey
from registry.workload import Shape
from tests.tuner.pipeline.tiny import FLUX, picture, plan
from tuner import catalog
from tuner.block_kinds import Bench
from tuner.block_sums import BlockSums
from tuner.block_targets import Choices, block_targets, kinds_at, layer_targets
from tuner.choices import denoiser_quantizations
from tuner.detect import detect
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.quantize import layer_types
from tuner.protocol import Event, TimingDone, TimingJob, TimingResult, TimingTarget
from tuner.runner import Limits, Runner

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
SQUARE = Shape(height=1024, width=1024)
SCHEMES: tuple[LayerScheme, ...] = ("none", "float8_dynamic_row", "int8_dynamic")
BACKENDS: tuple[AttentionBackend, ...] = ("default", "_native_cudnn")
BUDGET_BYTES = 20 * 10**9
"""A fraction of what FLUX takes whole."""

TimeOf = Callable[[Sequence[TimingTarget]], dict[TimingKey, Timing]]


@pytest.fixture(scope="module")
def time_of(tmp_path_factory: pytest.TempPathFactory) -> TimeOf:
    scratch = tmp_path_factory.mktemp("blocks")
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environ |= {"HOME": str(scratch), "HF_HUB_OFFLINE": "1"}
    runner = Runner(sys.executable, detect(), None, scratch, environ=environ)

    def timings(targets: Sequence[TimingTarget]) -> dict[TimingKey, Timing]:
        found: dict[TimingKey, Timing] = {}

        def hear(event: Event) -> None:
            if isinstance(event, TimingDone):
                found[event.timing.key] = event.timing

        job = TimingJob(
            model=resolve_model("flux-dev", weights="random"),
            targets=tuple(targets),
            dtype="bfloat16",
            budget_bytes=BUDGET_BYTES,
            compile_cache_dir=str(scratch / "compile"),
        )
        outcome = runner.run(job, Limits(wall_s=500, progress_s=300), hear)
        log = outcome.log_path.read_text()[-4000:]
        assert isinstance(outcome.result, TimingResult), (outcome.failure, log)
        assert set(found) == {target.key for target in targets}
        return found

    return timings


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(detect().environment, "bfloat16")


def choices() -> Choices:
    inventory = catalog.shipped_inventory("flux-dev")
    assert inventory is not None
    found: dict[str, Quantization] = {}
    for item in denoiser_quantizations(inventory):
        if item.scheme in SCHEMES:
            found.setdefault(item.scheme, item)
    return Choices(tuple(found.values()), BACKENDS)


def sums_of(bench: Bench, timings: dict[TimingKey, Timing]) -> BlockSums:
    inventory = catalog.shipped_inventory("flux-dev")
    assert inventory is not None
    return BlockSums(kinds_at(inventory, SQUARE), bench, SQUARE, timings)


def test_blocks_of_flux_add_up_to_a_step(
    time_of: TimeOf,
    bench: Bench,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The additive guess for float8 with cuDNN's attention is held against that very pair."""
    chosen = choices()
    kinds = sums_of(bench, {}).kinds
    targets = block_targets(kinds, bench, SQUARE, chosen)
    row = next(item for item in chosen.quantizations if item.scheme == "float8_dynamic_row")
    pairs = [
        TimingTarget(
            key=bench.block(kind, kind.schemes(row), "_native_cudnn"),
            path=kind.names[0],
            shape=SQUARE,
            layers=dict(kind.schemes(row)),
        )
        for kind in kinds
    ]
    timings = time_of([*targets, *pairs])
    for timing in timings.values():
        assert timing.outcome in ("measured", "noisy"), timing.message
    exact = sums_of(bench, timings)
    guessed = sums_of(bench, {target.key: timings[target.key] for target in targets})
    figures = {
        f"{item.scheme} {backend}": exact.blocks_ms(item, backend)
        for item in chosen.quantizations
        for backend in BACKENDS
    }
    figures["none eager"] = exact.blocks_ms(context="eager")
    figures["float8_dynamic_row _native_cudnn, as a sum"] = guessed.blocks_ms(row, "_native_cudnn")
    with capsys.disabled():
        for name, ms in figures.items():
            record_property(name, ms)
            sys.stdout.write(f"\n{name}: {ms:.1f} ms")
    plain_ms, row_ms = exact.blocks_ms(), exact.blocks_ms(row)
    assert plain_ms is not None
    assert row_ms is not None
    assert row_ms < plain_ms < (figures["none eager"] or 0.0)
    assert guessed.blocks_ms(row, "_native_cudnn") == pytest.approx(
        exact.blocks_ms(row, "_native_cudnn"), rel=0.1
    )


def test_layers_of_flux_alone(time_of: TimeOf, bench: Bench) -> None:
    """The large layers gain from float8, and every quantized one is scored."""
    kinds = sums_of(bench, {}).kinds
    row = next(i for i in choices().quantizations if i.scheme == "float8_dynamic_row")
    targets = layer_targets(kinds[1:], bench, SQUARE, (row,))
    timings = time_of(targets)
    assert {timing.outcome for timing in timings.values()} <= {"measured", "noisy"}
    wide = {t.key.scheme: t for t in timings.values() if t.key.shape == (4608, 3072, 12288)}
    assert set(wide) == {"none", "float8_dynamic_row"}
    times = {scheme: timing.median_ms or 0.0 for scheme, timing in wide.items()}
    assert 0 < times["float8_dynamic_row"] < times["none"]
    for timing in timings.values():
        assert (timing.sqnr_db is None) is (timing.key.scheme == "none")
        assert timing.sqnr_db is None or 20 < timing.sqnr_db < 60


def test_a_mixture_of_float8_and_int8_runs_compiled() -> None:
    layers: dict[str, LayerScheme] = {
        "*transformer_blocks.*.attn.to_*": "float8_dynamic_row",
        "transformer_blocks.*.ff.net.*": "int8_dynamic",
    }
    component = ComponentPlan(
        quantization=Quantization(scheme="mixed", layers=layers),
        compilation=Compilation(scope="regional", fullgraph=True),
    )
    chosen = plan({"transformer": component}, dtype="bfloat16")
    pipe = engine.load(FLUX, chosen, torch.device("cuda:0"))
    types = layer_types(pipe.transformer)
    assert types["Linear/Float8Tensor"] > 0
    assert types["Linear/Int8Tensor"] > 0
    assert torch.isfinite(picture(pipe)).all()
