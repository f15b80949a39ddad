"""Peak memory of a plan: what is on the device in each phase, and what waits on the host.

A request runs its text encoders, then the denoiser, then the VAE. In each phase the device holds
the idle share of every component, the running one's active share, its activations, and what lies
outside torch's allocator (the CUDA context, libraries, kernels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry.inventory import ComponentActivity, LinearLayer, ShapeProfile
from registry.plan import ComponentPlan, Dtype, LayerScheme, PipelineOptions, Quantization
from tuner.activities import activity_of
from tuner.footprint import Footprint
from tuner.layers import DTYPE_BYTES
from tuner.rooflines import Peaks

OUTSIDE_BYTES = {7: 350_000_000, 8: 450_000_000, 9: 550_000_000, 10: 650_000_000, 12: 500_000_000}
"""The CUDA context and libraries by major capability; 0.5 to 0.6 GB on an H200. Trials correct."""
OUTSIDE_DEFAULT_BYTES = 500_000_000
OUTSIDE_CPU_BYTES = 60_000_000
PROCESS_CPU_BYTES = 400_000_000
"""A worker on a CPU after its imports: interpreter, torch, diffusers. 403 MB with torch 2.13."""
COMPILED_OUTSIDE_BYTES = 100_000_000
COMPILED_CPU_BYTES = 250_000_000
"""What compiling leaves in a process: tracing state on a CPU, kernels in the context on a GPU."""
WORKSPACE_BYTES = 64 * 2**20
"""cuBLAS keeps its workspaces inside the allocator."""
ACTIVATION_MARGIN = 1.1
"""The allocator reserves whole segments: more than what is live."""
WEIGHT_MARGIN = 1.01
GRAPH_POOL_FACTOR = 2
"""A captured CUDA graph keeps its own pool of activations."""
GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})
INT32_BYTES = 4


@dataclass(frozen=True)
class PhasePeak:
    """What one phase needs: `weight_bytes` of every component then on the device."""

    phase: str
    weight_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class MemoryNeed:
    """A plan's peak and what it consists of; `phase` is "load", "encode", "denoise", "decode".
    `host_bytes` is what the host holds beside the device: on a CPU, the bare process."""

    phase: str
    weight_bytes: int
    activation_bytes: int
    outside_bytes: int
    load_peak_bytes: int
    host_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.outside_bytes


class MemoryModel:
    """Predicts memory on one device. `outside_bytes` was measured there, None for a guess."""

    def __init__(self, peaks: Peaks, outside_bytes: int | None = None) -> None:
        self._peaks = peaks
        self._outside_bytes = outside_bytes
        # By identity, each with the objects it is about: identities cannot be given to others.
        self._live: dict[tuple[int, Dtype, int], tuple[ComponentPlan, ComponentActivity, int]] = {}
        self._scratches: dict[tuple[Quantization, Dtype, int], tuple[ComponentActivity, int]] = {}

    def need(
        self,
        options: PipelineOptions,
        footprints: Sequence[Footprint],
        profiles: Sequence[ShapeProfile],
    ) -> MemoryNeed:
        """The largest of the phases of every shape, load included."""
        outside = self._outside(footprints)
        load = load_peak(footprints)
        phases = [load]
        for profile in profiles:
            phases += self.phases(footprints, options, profile)
        worst = max(phases, key=lambda item: item.total_bytes)
        on_host = sum(item.host_bytes for item in footprints)
        return MemoryNeed(
            phase=worst.phase,
            weight_bytes=worst.weight_bytes,
            activation_bytes=worst.activation_bytes,
            outside_bytes=outside,
            load_peak_bytes=load.total_bytes + outside,
            host_bytes=on_host if self._peaks.is_cuda else PROCESS_CPU_BYTES,
        )

    def phases(
        self, footprints: Sequence[Footprint], options: PipelineOptions, profile: ShapeProfile
    ) -> Iterator[PhasePeak]:
        """One for every component that runs, in the order of a request."""
        idle = sum(item.idle_bytes for item in footprints)
        lingering = 0
        for item in sorted(footprints, key=lambda item: _ORDER[item.component.role]):
            activity = activity_of(profile, item.component, options.vae)
            if activity is None:
                continue
            if item.lingers:
                lingering = 0
            weights = idle - item.idle_bytes + item.active_bytes + lingering
            live = self._activation_bytes(item, activity, options.dtype)
            if item.component.role == "vae" and options.vae.slicing:
                live = -(-live // profile.shape.batch_size)
            yield PhasePeak(_PHASES[item.component.role], _with_margin(weights), live)
            if item.lingers:
                lingering = item.active_bytes

    def _activation_bytes(self, item: Footprint, activity: ComponentActivity, dtype: Dtype) -> int:
        key = (id(item.choice), dtype, id(activity))
        if key not in self._live:
            scratch = self._scratch(item, activity, dtype)
            live = activation_bytes(item.choice, activity, scratch, dtype)
            self._live[key] = (item.choice, activity, live)
        return self._live[key][2]

    def _scratch(self, item: Footprint, activity: ComponentActivity, dtype: Dtype) -> int:
        key = (item.choice.quantization, dtype, id(activity))
        if key not in self._scratches:
            self._scratches[key] = (activity, scheme_scratch(item, activity, dtype))
        return self._scratches[key][1]

    def _outside(self, footprints: Sequence[Footprint]) -> int:
        compiled = any(item.choice.compilation.scope != "none" for item in footprints)
        if not self._peaks.is_cuda:
            guessed = OUTSIDE_CPU_BYTES + (COMPILED_CPU_BYTES if compiled else 0)
            return guessed if self._outside_bytes is None else self._outside_bytes
        major = self._peaks.capability[0] if self._peaks.capability else 0
        guessed = OUTSIDE_BYTES.get(major, OUTSIDE_DEFAULT_BYTES)
        guessed += COMPILED_OUTSIDE_BYTES if compiled else 0
        return WORKSPACE_BYTES + (guessed if self._outside_bytes is None else self._outside_bytes)


_PHASES = {"text_encoder": "encode", "denoiser": "denoise", "vae": "decode", "other": "other"}
_ORDER = {"text_encoder": 0, "other": 1, "denoiser": 2, "vae": 3}


def load_peak(footprints: Sequence[Footprint]) -> PhasePeak:
    """Layers are materialised, quantized and placed one by one: at the end all that stays is there,
    and one layer is being quantized."""
    scratch = max((item.load_scratch_bytes for item in footprints), default=0)
    return PhasePeak("load", _with_margin(sum(item.idle_bytes for item in footprints)), scratch)


def _with_margin(weights: int) -> int:
    return round(weights * WEIGHT_MARGIN)


def activation_bytes(
    choice: ComponentPlan, activity: ComponentActivity, scratch_bytes: int, dtype: Dtype
) -> int:
    """Live tensors of one call beside weights, what the scheme adds, what the allocator rounds."""
    live = activity.activation_peak_bytes * DTYPE_BYTES[dtype] / DTYPE_BYTES["bfloat16"]
    live += scratch_bytes
    if choice.compilation.cuda_graph or choice.compilation.mode in GRAPH_MODES:
        live *= GRAPH_POOL_FACTOR
    return round(live * ACTIVATION_MARGIN)


def scheme_scratch(item: Footprint, activity: ComponentActivity, dtype: Dtype) -> int:
    """Weight-only schemes unpack a layer to compute with it; dynamic ones hold a packed input, and
    int8 a 32-bit output."""
    wanted = item.choice.quantization.wanted
    needs = (_layer_scratch(layer, wanted(layer.name), activity, dtype) for layer in item.touched)
    return max(needs, default=0)


def _layer_scratch(
    layer: LinearLayer, scheme: LayerScheme, activity: ComponentActivity, dtype: Dtype
) -> int:
    if scheme.endswith("weight_only"):
        return layer.weight_elements * DTYPE_BYTES[dtype]
    rows = activity.linear_rows.get(layer.name, 0)
    product = rows * layer.out_features * INT32_BYTES if scheme == "int8_dynamic" else 0
    return rows * layer.in_features + product
