"""What diffusers' documentation does by hand, measured: speed and memory of each recipe.

    python benchmarks/hand_recipes.py --model flux-dev --weights random --resolution 1024x1024
        [--vram 80GB --vram 24GB ...] [--record ID ...] [--only NAME ...]

Each recipe runs in a process of its own, on weights that begin on the host in bfloat16. Its time
does not depend on a budget, so each runs once; for each `--vram` the quickest that stays within it
is named. `--record` adds published plans from the registry, applied as `tuner.apply` does. Prints a
row as each is measured, and the same as one line of JSON.

A recipe's peak is the allocator's, while it runs, and what lies outside of the allocator: its load
and what the allocator keeps in reserve are left out, in its favour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.recipes import RECIPES
from registry.client import open_registry
from registry.plan import ComponentPlan, ModelOffload
from registry.workload import Shape
from tuner.config import load_settings
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.device import Device
from tuner.pipeline.dtypes import DTYPES
from tuner.pipeline.load import materialise
from tuner.pipeline.request import call_arguments
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.timing import DeviceClock, median_and_mad, run_request
from tuner.pipeline.weights import component_source
from tuner.units import format_bytes, parse_bytes, parse_resolution

HOST = ComponentPlan(placement=ModelOffload())
PROMPT = "a red circle"
GB = 10**9


@dataclass(frozen=True)
class Row:
    """One recipe. `request_s` is prompt to decoded picture at `steps` steps, of whose ends
    `step_ms` is the median gap; `peak_bytes` is 0 on a CPU. A `failure` stands alone."""

    name: str
    steps: int = 0
    step_ms: float = 0.0
    request_s: float = 0.0
    first_s: float = 0.0
    peak_bytes: int = 0
    failure: str | None = None


def main() -> int:
    asked = parse()
    if asked.child is not None:
        print(json.dumps(asdict(measure(asked.child, asked))))
        return 0
    rows = []
    print(HEADER)
    for name in [*(asked.only or RECIPES), *asked.record]:
        rows.append(in_a_fresh_process(name))
        print(line(rows[-1]), json.dumps(asdict(rows[-1])), sep="\n", flush=True)
    print("", HEADER, *map(line, rows), sep="\n")
    for budget in asked.vram:
        print(verdict(rows, budget, asked.record))
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="flux-dev")
    parser.add_argument("--weights", default=None, choices=("random", "pretrained"))
    parser.add_argument("--resolution", type=parse_resolution, default=(1024, 1024))
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(DTYPES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--vram", type=parse_bytes, action="append", default=[])
    parser.add_argument("--only", choices=tuple(RECIPES), action="append")
    parser.add_argument("--record", action="append", default=[], metavar="ID")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def in_a_fresh_process(name: str) -> Row:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return Row(name, failure=f"its process ended with {done.returncode}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, asked: argparse.Namespace) -> Row:
    """The recipe or record `name` on a pipeline of its own. Whatever it raises is its answer: what
    cannot be combined, and what does not fit, is what the table is about."""
    spec = resolve_model(asked.model, weights=asked.weights)
    device = Device(asked.gpu if torch.cuda.is_available() else None, sys.maxsize)
    pipe = on_the_host(spec, DTYPES[asked.dtype], device.torch_device)
    recipe = RECIPES.get(name) or partial(apply_record, name)
    try:
        return timed(name, pipe, recipe, device, asked)
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        return Row(name, failure=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def on_the_host(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """As `from_pretrained` leaves it."""
    skeleton = build_skeleton(spec, dtype)
    pipe = skeleton.pipeline()
    for name, module in skeleton.modules.items():
        source = component_source(name, module, skeleton.folder, spec.seed)
        materialise(name, module, source, HOST, device, engine.nothing_done)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def apply_record(record_id: str, pipe: Any, device: torch.device) -> None:
    stored = open_registry(load_settings().registry, create=False).record(record_id)
    engine.apply(pipe, stored.record.plan, device)


def timed(
    name: str,
    pipe: Any,
    recipe: Callable[[Any, torch.device], None],
    device: Device,
    asked: argparse.Namespace,
) -> Row:
    if device.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device.torch_device)
    recipe(pipe, device.torch_device)
    height, width = asked.resolution
    arguments = call_arguments(pipe, Shape(height=height, width=width), [PROMPT], asked.steps)
    clock = DeviceClock(device.torch_device)
    with torch.no_grad():
        first, second, third = (
            run_request(
                pipe,
                clock,
                {**arguments, "generator": torch.Generator().manual_seed(0)},
                lambda _: None,
            )
            for _ in range(3)
        )
    step_ms, _ = median_and_mad([*second.step_ms, *third.step_ms])
    return Row(
        name=name,
        steps=asked.steps,
        step_ms=step_ms,
        request_s=min(second.latency_s, third.latency_s),
        first_s=first.latency_s,
        peak_bytes=device.allocated_peak_bytes() + device.outside_allocator_bytes(),
    )


HEADER = f"{'recipe':<48}{'step ms':>9}{'request s':>11}{'first s':>9}{'peak GB':>9}"


def line(row: Row) -> str:
    if row.failure is not None:
        return f"{row.name:<48}  {row.failure[:120]}"
    times = f"{row.step_ms:>9.1f}{row.request_s:>11.2f}{row.first_s:>9.1f}"
    return f"{row.name:<48}{times}{row.peak_bytes / GB:>9.1f}"


def best_within(rows: Sequence[Row], budget_bytes: int) -> Row | None:
    """The quickest by step of those that ran and stay within the budget."""
    fit = [row for row in rows if row.failure is None and row.peak_bytes <= budget_bytes]
    return min(fit, key=lambda row: row.step_ms, default=None)


def verdict(rows: Sequence[Row], budget_bytes: int, records: Sequence[str]) -> str:
    """The best recipe within a budget, and how the best record there compares with it."""
    budget = format_bytes(budget_bytes)
    by_hand = best_within([row for row in rows if row.name not in records], budget_bytes)
    ours = best_within([row for row in rows if row.name in records], budget_bytes)
    if by_hand is None:
        return f"{budget}: no recipe stays within it"
    told = f"{budget}: by hand {by_hand.step_ms:.1f} ms a step ({by_hand.name})"
    if ours is None:
        return told
    ratio = by_hand.step_ms / ours.step_ms
    return f"{told}; record {ours.name} {ours.step_ms:.1f} ms, {ratio:.2f} times as fast"


if __name__ == "__main__":
    sys.exit(main())
