"""Times the blocks of a model on this machine and adds up its step: no weights are downloaded.

    python benchmarks/blocks.py [--model flux-dev] [--resolution 1024x1024] [--layers]

Each row is printed as it is timed; rows with the same choice are then timed again in turn, and the
table at the end holds those. Nothing is written but compiled code, in a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry.inventory import ModelInventory
from registry.plan import AttentionBackend, LayerScheme, Quantization
from registry.timing import Timing, TimingKey
from registry.workload import Shape
from tuner import catalog
from tuner.block_kinds import Bench, BlockKind
from tuner.block_sums import BlockSums
from tuner.block_targets import Choices, block_targets, kinds_at, layer_targets
from tuner.choices import default_dtype, denoiser_quantizations
from tuner.config import load_settings
from tuner.detect import Detection, detect
from tuner.models import resolve_model
from tuner.protocol import Event, TimingDone, TimingJob, TimingTarget
from tuner.runner import Limits, Runner

LIMITS = Limits(wall_s=600, progress_s=300)
SCHEMES: tuple[LayerScheme, ...] = ("float8_dynamic_row", "int8_dynamic")
BACKENDS: tuple[AttentionBackend, ...] = ("default", "_native_cudnn")


def main(arguments: Sequence[str]) -> int:
    """0 where every block was timed unquantized, 1 otherwise."""
    asked = _parser().parse_args(arguments)
    width, height = (int(part) for part in asked.resolution.split("x"))
    inventory = catalog.shipped_inventory(asked.model)
    if inventory is None:
        print(f"{asked.model} ships no inventory; {', '.join(catalog.names())} do", file=sys.stderr)
        return 2
    shape = Shape(height=height, width=width)
    detection = detect()
    kinds = kinds_at(inventory, shape)
    bench = Bench(detection.environment, default_dtype(detection.environment))
    choices = Choices(quantizations(inventory, asked.schemes), tuple(asked.backends))
    targets = block_targets(kinds, bench, shape, choices)
    if asked.layers:
        targets += layer_targets(kinds, bench, shape, choices.quantizations)
    hardware, runtime = detection.environment.hardware, detection.environment.runtime
    print(f"{hardware.name}, torch {runtime.torch}, torchao {runtime.torchao}, {bench.dtype}")
    print(f"{asked.model} at {shape.label}: {', '.join(map(_kind, kinds))}\n")
    timings = run(asked.model, targets, bench, detection)
    sums = BlockSums(kinds, bench, shape, timings)
    report(sums, choices)
    return 0 if sums.blocks_ms() is not None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the blocks of a model on this machine.")
    parser.add_argument("--model", default="flux-dev", help="a catalog name")
    parser.add_argument("--resolution", default="1024x1024", help="width x height")
    parser.add_argument("--schemes", nargs="*", default=SCHEMES, help="of the linear layers")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, help="of attention")
    parser.add_argument("--layers", action="store_true", help="time single layers too")
    return parser


def quantizations(
    inventory: ModelInventory, schemes: Sequence[LayerScheme]
) -> tuple[Quantization, ...]:
    """The first that the tuner itself would try of each scheme: modulation layers left alone."""
    found: dict[str, Quantization] = {}
    for item in denoiser_quantizations(inventory):
        if item.scheme == "none" or item.scheme in schemes:
            found.setdefault(item.scheme, item)
    return tuple(found.values())


def run(
    model: str, targets: Sequence[TimingTarget], bench: Bench, detection: Detection
) -> dict[TimingKey, Timing]:
    """One worker process; each row as it comes. What was timed stands, however the worker ended."""
    found: dict[TimingKey, Timing] = {}
    started_s = time.monotonic()

    def hear(event: Event) -> None:
        if isinstance(event, TimingDone):
            if event.timing.key not in found:
                print(f"{time.monotonic() - started_s:6.1f} s  {_row(event.timing)}", flush=True)
            found[event.timing.key] = event.timing

    with tempfile.TemporaryDirectory(prefix="tuner-blocks-") as folder:
        environ = load_settings().environ
        runner = Runner(sys.executable, detection, None, Path(folder), environ=environ)
        job = TimingJob(
            model=resolve_model(model, weights="random"),
            targets=tuple(targets),
            dtype=bench.dtype,
            budget_bytes=detection.environment.hardware.vram_bytes,
            compile_cache_dir=str(Path(folder) / "compile"),
        )
        outcome = runner.run(job, LIMITS, hear)
        print(f"{time.monotonic() - started_s:6.1f} s  all\n", flush=True)
        if outcome.failure is not None:
            print(f"ended early: {outcome.failure.kind}: {outcome.failure.message}")
            print(outcome.log_path.read_text(errors="replace")[-4000:], file=sys.stderr)
        if outcome.contaminated is not None:
            print(f"others used the device meanwhile: {outcome.contaminated}")
    return found


def report(sums: BlockSums, choices: Choices) -> None:
    """Every timing after its rounds, then the blocks of a step under each pair of choices."""
    for timing in sums.timings.values():
        print(_row(timing))
    print(f"\n{'all blocks of a step':<24}{'attention':<20}{'ms':>9}")
    for quantization in choices.quantizations:
        for backend in choices.backends:
            ms = sums.blocks_ms(quantization, backend)
            print(f"{quantization.scheme:<24}{backend:<20}{'–' if ms is None else f'{ms:9.2f}'}")
    eager_ms = sums.blocks_ms(context="eager")
    if eager_ms is not None:
        print(f"{'none, not compiled':<24}{'default':<20}{eager_ms:9.2f}")


def _kind(kind: BlockKind) -> str:
    batch, image, text = kind.shape
    return f"{len(kind.names)} {kind.class_name} of {batch}x({image}+{text}) tokens"


def _row(timing: Timing) -> str:
    key = timing.key
    shape = "x".join(map(str, key.shape))
    bias = " bias" if key.kind == "linear" and key.bias else ""
    name = f"{key.name.partition(':')[0]} {shape}{bias}"
    choice = f"{key.scheme} {key.attention_backend} {key.context}"
    if timing.median_ms is None or timing.mad_ms is None:
        return f"{name:<42}{choice:<46}{timing.outcome}: {timing.message[:80]}"
    score = "" if timing.sqnr_db is None else f"  {timing.sqnr_db:5.1f} dB"
    figures = f"{timing.median_ms:9.4f} ± {timing.mad_ms:.4f} ms"
    noisy = "  noisy" if timing.outcome == "noisy" else ""
    return f"{name:<42}{choice:<46}{figures}{score}{noisy}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
