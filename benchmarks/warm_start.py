"""How long a plan's first call takes cold, and with the compiled code of another process.

    python benchmarks/warm_start.py [--model tiny-flux] [--size 64] [--scope regional|whole]

Each start is a process of its own with an empty cache folder, one after another. "torch's cache" is
what `torch.compiler.save_cache_artifacts` gives by itself, "compiled code" what a plan is published
with, without and with the functions compiled ahead of time. The compile time is the first call
beyond a steady one. On a machine that others use, compare the processor's seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from registry.plan import Compilation, ComponentPlan, Dtype, PipelineOptions, Plan, Quantization
from tuner.models import resolve_model
from tuner.pipeline import apply as engine
from tuner.pipeline.ahead import Ahead
from tuner.pipeline.artifacts import Warmth, compile_into, save_compiled_code, use_compiled_code

STEPS = 2
STEADY_CALLS = 7
STARTS = ("cold", "torch's cache", "compiled code", "ahead of time")
WITH_CODE = STARTS[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-flux")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--scope", choices=("regional", "whole"), default="regional")
    parser.add_argument("--scheme", default=None, help="quantize the denoiser")
    parser.add_argument("--start", choices=STARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start is not None:
        print(json.dumps(start(asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'start':<15}{'artifacts s':>12}{'load s':>8}{'first s':>9}{'processor s':>13}"
            f"{'steady s':>10}  taken"
        )
        for name in STARTS:
            print(row(name, in_a_fresh_process(name, folder)), flush=True)


def in_a_fresh_process(name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--start", name, "--folder", folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, found: dict[str, Any]) -> str:
    times = (
        found["artifacts_s"],
        found["load_s"],
        found["first_s"],
        found["first_processor_s"],
        found["steady_s"],
    )
    return "{:<15}{:>12.2f}{:>8.2f}{:>9.2f}{:>13.2f}{:>10.3f}  {}".format(
        name, *times, found["taken"]
    )


def start(asked: argparse.Namespace) -> dict[str, Any]:
    """One start, timed. The cold one leaves what the others start with."""
    device = engine.default_device()
    code, of_torch = asked.folder / "code.bin", asked.folder / "torch.bin"
    cache = asked.folder / f"cache-{STARTS.index(asked.start)}"
    compile_into(cache)
    begin = time.perf_counter()
    warmth = Warmth(cache, frozenset(), Ahead(is_recording=asked.start == "cold"))
    if asked.start in WITH_CODE:
        warmth = use_compiled_code(code.read_bytes(), cache)
    if asked.start == "compiled code":
        warmth.ahead = Ahead()
    elif asked.start == "torch's cache":
        torch.compiler.load_cache_artifacts(of_torch.read_bytes())
    artifacts_s = time.perf_counter() - begin
    begin = time.perf_counter()
    pipe = engine.load(
        resolve_model(asked.model, weights="random"), plan_of(asked), device, ahead=warmth.ahead
    )
    load_s = time.perf_counter() - begin
    call = caller(pipe, asked.size)
    begin = processor_s()
    first_s = call()
    first_processor_s = processor_s() - begin
    steady_s = min(call() for _ in range(STEADY_CALLS))
    if asked.start == "cold":
        save_compiled_code(code, cache, device, warmth.ahead.compile_ahead())
        saved = torch.compiler.save_cache_artifacts()
        of_torch.write_bytes(saved[0] if saved else b"")
    return {
        "artifacts_s": artifacts_s,
        "load_s": load_s,
        "first_s": first_s,
        "first_processor_s": first_processor_s,
        "steady_s": steady_s,
        "taken": taken(warmth),
    }


def processor_s() -> float:
    """Of this process and of those that it waited for, as compilers are."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def plan_of(asked: argparse.Namespace) -> Plan:
    scheme = Quantization(scheme=asked.scheme, min_features=32) if asked.scheme else None
    denoiser = ComponentPlan(compilation=Compilation(scope=asked.scope))
    if scheme is not None:
        denoiser = denoiser.model_copy(update={"quantization": scheme})
    dtype: Dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    components = {"transformer": denoiser}
    return Plan(pipeline=PipelineOptions(dtype=dtype, components=components))


def caller(pipe: Any, size: int) -> Callable[[], float]:
    def call() -> float:
        generator = torch.Generator().manual_seed(0)
        begin = time.perf_counter()
        pipe(
            "a red circle",
            height=size,
            width=size,
            num_inference_steps=STEPS,
            output_type="latent",
            generator=generator,
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return call


def taken(warmth: Any) -> str:
    used = warmth.counted()
    graphs, libraries = (
        used.graph_hits + used.graph_misses,
        used.library_hits + used.library_misses,
    )
    functions = f"{used.function_hits}/{used.function_hits + used.function_misses} functions"
    return (
        f"{functions}, {used.graph_hits}/{graphs} graphs, {used.library_hits}/{libraries} libraries"
    )


if __name__ == "__main__":
    main()
