"""How near streamed FLUX comes to its floor: the slower of the host link and the computation.

    python benchmarks/streaming.py [--resident 0 14 28 42 57] [--scheme float8_dynamic_row]

The FLUX.1-dev transformer at full size with random weights, one denoiser step at 1024², compiled by
regions, attention on cuDNN. Needs a GPU of compute capability 8.9 or newer for float8, 16 GB of
it for the row in which all blocks are resident, and 12 GB of host memory. Prints a row as each is
measured, and the same as one line of JSON. Rows with a link floor are held to `--within`.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from registry.plan import ComponentPlan, Placement, Quantization, Resident, Scheme, StreamedBlocks
from tuner.choices import SENSITIVE_PATTERNS
from tuner.models import resolve_model
from tuner.pipeline.apply import nothing_done
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.load import materialise
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.streaming import StreamReport, stream_blocks
from tuner.pipeline.weights import RandomWeights

BLOCKS = 57
TEXT_TOKENS = 512
PICTURE_TOKENS = 64 * 64
PROBE_BYTES = 2**30
GB = 10**9


@dataclass(frozen=True)
class Row:
    """`floor_ms` is the larger of the two before it; times are medians over steps."""

    resident_blocks: int
    streamed_gb: float
    step_ms: float
    link_ms: float
    compute_ms: float
    floor_ms: float
    ratio: float
    peak_allocated_gb: float
    place_s: float
    first_step_s: float
    graphs: int
    new_graphs: int


def main() -> int:
    options = parse()
    device = torch.device("cuda", torch.cuda.current_device())
    torch.set_grad_enabled(False)
    link = measured_link(device)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.scheme}")
    print(f"link {link / GB:.1f} GB/s, pinned, host to device", flush=True)
    rows: list[Row] = []
    for resident in sorted({*options.resident, BLOCKS}, reverse=True):
        compute_ms = rows[0].compute_ms if rows else None
        row = measure(resident, options, device, link, compute_ms)
        rows.append(row)
        print(line(row), json.dumps(asdict(row)), sep="\n", flush=True)
    print("", HEADER, *map(line, reversed(rows)), sep="\n")
    late = [row for row in rows if row.streamed_gb and row.ratio > options.within]
    return 1 if late or any(row.new_graphs for row in rows) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Streamed FLUX against its floor.")
    parser.add_argument("--resident", type=int, nargs="+", default=[0, 14, 28, 42, BLOCKS])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--scheme", choices=get_args(Scheme), default="float8_dynamic_row")
    parser.add_argument("--backend", default="_native_cudnn")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each row")
    parser.add_argument("--within", type=float, default=1.08, help="accepted ratio to the floor")
    return parser.parse_args()


def measured_link(device: torch.device) -> float:
    """Bytes a second of the best of five pinned copies."""
    source = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    times = [timed(lambda: target.copy_(source, non_blocking=True)) for _ in range(6)]
    return PROBE_BYTES / min(times[1:]) * 1000


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def measure(
    resident: int,
    options: argparse.Namespace,
    device: torch.device,
    link: float,
    compute_ms: float | None,
) -> Row:
    """One budget. Without `compute_ms` this row, whose blocks are all resident, is the floor."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    model, report = placed(resident, options, device)
    torch.cuda.synchronize()
    place_s = time.perf_counter() - began
    inputs = step_inputs(device)
    began = time.perf_counter()
    model(**inputs)
    torch.cuda.synchronize()
    first_s = time.perf_counter() - began
    graphs = compile_counters()["graphs"]
    step_ms = median(steps(model, inputs, options.steps))
    streamed = report.host_bytes if report else 0
    link_ms = streamed / link * 1000
    floor_ms = max(link_ms, compute_ms or step_ms)
    return Row(
        resident_blocks=BLOCKS - (len(report.streamed) if report else 0),
        streamed_gb=round(streamed / GB, 2),
        step_ms=round(step_ms, 1),
        link_ms=round(link_ms, 1),
        compute_ms=round(compute_ms or step_ms, 1),
        floor_ms=round(floor_ms, 1),
        ratio=round(step_ms / floor_ms, 3),
        peak_allocated_gb=round(torch.cuda.max_memory_allocated() / GB, 2),
        place_s=round(place_s, 1),
        first_step_s=round(first_s, 1),
        graphs=graphs,
        new_graphs=compile_counters()["graphs"] - graphs,
    )


def steps(model: nn.Module, inputs: dict[str, Any], count: int) -> Iterator[float]:
    """Steps follow each other without a pause, as a scheduler's do; the first two warm up."""
    for _ in range(2):
        model(**inputs)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        model(**inputs)
        mark.record()
    torch.cuda.synchronize()
    for begin, end in pairwise(marks):
        yield begin.elapsed_time(end)


def median(values: Iterator[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def placed(
    resident: int, options: argparse.Namespace, device: torch.device
) -> tuple[Any, StreamReport | None]:
    """The transformer as a plan of this placement loads it."""
    spec = resolve_model("flux-dev", weights="random")
    model: Any = build_skeleton(spec, torch.bfloat16).modules["transformer"]
    stays = resident >= BLOCKS
    placement: Placement = Resident()
    if not stays:
        placement = StreamedBlocks(resident_blocks=resident, slots=options.slots)
    plan = ComponentPlan(quantization=quantization(options.scheme), placement=placement)
    materialise(
        "transformer", model, RandomWeights("transformer", spec.seed), plan, device, nothing_done
    )
    model.set_attention_backend(options.backend)
    report = None
    if stays:
        model.to(device)
    else:
        report = stream_blocks(model, device, resident_blocks=resident, slots=options.slots)
    if not options.eager:
        model.compile_repeated_blocks(fullgraph=True)
    return model, report


def quantization(scheme: Scheme) -> Quantization:
    if scheme == "none":
        return Quantization()
    return Quantization(scheme=scheme, skip=SENSITIVE_PATTERNS, min_features=1024)


def step_inputs(device: torch.device) -> dict[str, Any]:
    """One picture of 1024²: 4096 tokens of it beside 512 of text."""
    made = torch.Generator(device=device).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, device=device, dtype=torch.bfloat16)

    positions = torch.zeros(64, 64, 3, device=device, dtype=torch.bfloat16)
    positions[..., 1] = torch.arange(64, device=device)[:, None]
    positions[..., 2] = torch.arange(64, device=device)[None, :]
    return {
        "hidden_states": noise(1, PICTURE_TOKENS, 64),
        "encoder_hidden_states": noise(1, TEXT_TOKENS, 4096),
        "pooled_projections": noise(1, 768),
        "timestep": torch.tensor([0.5], device=device, dtype=torch.bfloat16),
        "guidance": torch.tensor([3.5], device=device, dtype=torch.float32),
        "img_ids": positions.reshape(-1, 3),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3, device=device, dtype=torch.bfloat16),
        "return_dict": False,
    }


HEADER = (
    "resident  streamed GB  step ms  link ms  compute ms  ratio  peak GB  place s  first s  graphs"
)


def line(row: Row) -> str:
    return (
        f"{row.resident_blocks:8d}  {row.streamed_gb:11.2f}  {row.step_ms:7.1f}"
        f"  {row.link_ms:7.1f}  {row.compute_ms:10.1f}  {row.ratio:5.3f}"
        f"  {row.peak_allocated_gb:7.2f}  {row.place_s:7.1f}  {row.first_step_s:7.1f}"
        f"  {row.graphs}+{row.new_graphs}"
    )


if __name__ == "__main__":
    sys.exit(main())
