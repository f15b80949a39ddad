"""How long one call of a component takes: a roofline over what the inventory counted.

Matrix products by their FLOPs, everything else by the bytes it moves, the host by the number of
layers it must launch, offloading by the bytes that cross the link. Constants measured on FLUX.1-dev
at 1024² (one H200, torch 2.11) say so; the others are stated guesses that trials correct.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.inventory import ComponentActivity, LinearLayer
from registry.plan import (
    AttentionBackend,
    ComponentPlan,
    Dtype,
    GroupOffload,
    LayerScheme,
    StreamedBlocks,
)
from tuner.footprint import Footprint
from tuner.layers import DTYPE_BYTES, FEW_ROWS, FLOAT8_PRODUCTS, quantized_layer_bytes
from tuner.rooflines import (
    CHANNELS_LAST_GAIN,
    CONVOLUTION_EFFICIENCY,
    LINEAR_EFFICIENCY,
    Peaks,
    attention_efficiency,
)

EAGER_BANDWIDTH_SHARE = 0.76
"""Measured: 202 GB of element-wise traffic in about 55 ms at 4.8 TB/s."""
FUSED_TRAFFIC = 0.35
"""Measured: compiled, the same work takes about 19 ms; epilogues are fused into fewer kernels."""
FEW_ROWS_SHARE = 0.75
FEW_ROWS_FLOAT8_SHARE = 0.10
"""Measured: 77 modulation layers of one row took 5.4 ms longer in float8 than in bfloat16."""
UNPACK_BYTES = {True: 3, False: 8}
"""Per weight: read packed, write unpacked; eager does it in several passes. Keyed by compiled."""
QUANTIZE_BYTES: dict[LayerScheme, dict[bool, int]] = {
    "float8_dynamic_row": {True: 3, False: 16},
    "float8_dynamic_tensor": {True: 5, False: 18},
    "float8_static_tensor": {True: 0, False: 12},
    "int8_dynamic": {True: 3, False: 24},
}
"""Per input element: read and write packed; per tensor the input is read twice, for its maximum
first. Measured compiled: 3.8 ms between PerTensor and PerRow; a cast at a scale known beforehand is
part of the kernel before it, 9 ms less than per row. Keyed by compiled."""
INT8_OUTPUT_BYTES = 6
"""Per output element: the 32-bit product is read and rescaled."""
EAGER_INT8_PENALTY = 75
"""Published: int8 dynamic without compile took 20 times as long as bfloat16 (diffusers-torchao)."""
REGION_GAP_S = 70e-6
"""Measured: 4 ms idle over 57 regionally compiled blocks; compiled whole it was no faster, and a
CUDA graph gained nothing."""
LAUNCH_S = {True: 50e-6, False: 80e-6}
"""Host time for each linear layer and the operators around it, keyed by compiled. Measured: SDXL's
800 layers take 41 ms a step compiled by regions and 68 ms eager, both bound by Python, and 31 ms
in CUDA graphs (one H200)."""
EAGER_QUANTIZED_LAUNCHES = 2.5
GRAPH_LAUNCH_S = 2e-6
GRAPH_MODES = frozenset({"reduce-overhead", "max-autotune"})

STREAM_SHARE = 0.83
"""Measured: 23.8 GB streamed in 517 ms over a link of 55 GB/s. Shares of the link for pageable
copies: 2,945 ms sequential in; 14,203 ms in and out again without a stream."""
BLOCK_STREAM_SHARE = 0.98
"""Measured by `benchmarks/streaming.py` on an H200: 11.9 GB of float8 blocks in 214 ms over 55.5
GB/s, and 5.1 GB wholly behind the computation; 2% are left for slower hosts."""
PAGEABLE_IN_SHARE = 0.147
PAGEABLE_OUT_SHARE = 0.039


@dataclass(frozen=True)
class Call:
    """Seconds of one call. `moves_s` is what a request pays once, whatever the calls in it."""

    compute_s: float
    moves_s: float = 0.0


@dataclass(frozen=True)
class CallModel:
    """Predicts single calls on one device in one dtype."""

    peaks: Peaks
    dtype: Dtype

    def call(
        self,
        item: Footprint,
        activity: ComponentActivity,
        linear_s: float,
        backend: AttentionBackend,
    ) -> Call:
        """One call of a component; `linear_s` is `CallModel.linear_s` of the same."""
        compiled = item.choice.compilation.scope != "none"
        device_s = linear_s + self._other_s(item.choice, activity, compiled, backend)
        if compiled:
            blocks = sum(len(block.names) for block in item.component.repeated_blocks)
            device_s += REGION_GAP_S * blocks
        host_s = self._host_s(item, compiled)
        busy_s = max(device_s, host_s) if self.peaks.is_cuda else device_s + host_s
        return self._placed(item, busy_s)

    def linear_s(self, item: Footprint, activity: ComponentActivity) -> float:
        """All linear layers of one call, with packing and unpacking of the quantized ones."""
        compiled = item.choice.compilation.scope != "none"
        quantized = {layer.name for layer in item.touched}
        wanted = item.choice.quantization.wanted
        known_s: dict[tuple[int, int, int, LayerScheme], float] = {}
        total_s = 0.0
        for layer in item.component.linears:
            if rows := activity.linear_rows.get(layer.name, 0):
                scheme = wanted(layer.name) if layer.name in quantized else "none"
                alike = (layer.in_features, layer.out_features, rows, scheme)
                if alike not in known_s:
                    known_s[alike] = self._layer_s(layer, rows, scheme, compiled)
                total_s += known_s[alike]
        return total_s

    def _layer_s(self, layer: LinearLayer, rows: int, scheme: LayerScheme, compiled: bool) -> float:
        overhead_s = self.packing_s(layer, rows, scheme, compiled)
        product_s = self.product_s(layer, rows, scheme)
        few = rows <= FEW_ROWS and self.peaks.is_cuda
        if scheme == "int8_dynamic" and not compiled and self.peaks.is_cuda and not few:
            product_s *= EAGER_INT8_PENALTY
        return overhead_s + product_s

    def product_s(self, layer: LinearLayer, rows: int, scheme: LayerScheme) -> float:
        """The matrix product of one layer alone, by the best kernels known for its scheme."""
        if rows <= FEW_ROWS and self.peaks.is_cuda:
            return self._few_rows_s(layer, scheme)
        flops = 2 * rows * layer.weight_elements
        return flops / (self._matmul_peak(scheme) * LINEAR_EFFICIENCY[scheme])

    def packing_s(
        self, layer: LinearLayer, rows: int, scheme: LayerScheme, compiled: bool
    ) -> float:
        """Quantizing a layer's input, or unpacking its weight."""
        return self._packing_bytes(layer, rows, scheme, compiled) / self._bandwidth

    def _few_rows_s(self, layer: LinearLayer, scheme: LayerScheme) -> float:
        if scheme in FLOAT8_PRODUCTS:
            share, size = FEW_ROWS_FLOAT8_SHARE, quantized_layer_bytes(layer, scheme)
        else:
            share, size = FEW_ROWS_SHARE, layer.weight_elements * DTYPE_BYTES[self.dtype]
        return size / (self.peaks.memory_bytes_per_s * share)

    def _packing_bytes(
        self, layer: LinearLayer, rows: int, scheme: LayerScheme, compiled: bool
    ) -> float:
        if scheme == "none":
            return 0.0
        if scheme.endswith("weight_only"):
            return float(UNPACK_BYTES[compiled] * layer.weight_elements)
        moved = QUANTIZE_BYTES[scheme][compiled] * rows * layer.in_features
        if scheme == "int8_dynamic":
            moved += INT8_OUTPUT_BYTES * rows * layer.out_features
        return float(moved)

    def _matmul_peak(self, scheme: LayerScheme) -> float:
        if scheme in FLOAT8_PRODUCTS:
            return self.peaks.float8
        return self.peaks.int8 if scheme == "int8_dynamic" else self.peaks.matmul(self.dtype)

    @property
    def _bandwidth(self) -> float:
        return self.peaks.memory_bytes_per_s * EAGER_BANDWIDTH_SHARE

    def _other_s(
        self,
        choice: ComponentPlan,
        activity: ComponentActivity,
        compiled: bool,
        backend: AttentionBackend,
    ) -> float:
        """Attention, convolutions and element-wise work."""
        return (
            self.attention_s(activity, backend)
            + self.convolution_s(activity, channels_last=choice.channels_last)
            + self.elementwise_s(activity, compiled)
        )

    def attention_s(self, activity: ComponentActivity, backend: AttentionBackend) -> float:
        peak = self.peaks.matmul(self.dtype)
        return activity.attention_flops / (peak * attention_efficiency(backend, self.peaks))

    def convolution_s(self, activity: ComponentActivity, *, channels_last: bool) -> float:
        gain = CHANNELS_LAST_GAIN if channels_last else 1.0
        peak = self.peaks.matmul(self.dtype)
        return activity.convolution_flops / (peak * CONVOLUTION_EFFICIENCY * gain)

    def elementwise_s(self, activity: ComponentActivity, compiled: bool) -> float:
        """Of everything between the products: normalisation, modulation, activations."""
        scale = DTYPE_BYTES[self.dtype] / DTYPE_BYTES["bfloat16"]
        moved = activity.elementwise_bytes * scale * (FUSED_TRAFFIC if compiled else 1.0)
        return moved / self._bandwidth

    def _host_s(self, item: Footprint, compiled: bool) -> float:
        each_s = LAUNCH_S[compiled]
        own = item.choice.compilation
        if (own.cuda_graph or own.mode in GRAPH_MODES) and self.peaks.is_cuda:
            each_s = GRAPH_LAUNCH_S
        elif not compiled and item.touched:
            each_s *= EAGER_QUANTIZED_LAUNCHES
        return each_s * len(item.component.linears)

    def _placed(self, item: Footprint, busy_s: float) -> Call:
        placement, weight_bytes = item.choice.placement, item.weight_bytes
        if placement.kind == "resident" or not self.peaks.is_cuda:
            return Call(busy_s)
        link = self.peaks.link_bytes_per_s
        if isinstance(placement, StreamedBlocks):
            return Call(max(busy_s, item.link_bytes / (link * BLOCK_STREAM_SHARE)))
        in_s = weight_bytes / (link * PAGEABLE_IN_SHARE)
        out_s = weight_bytes / (link * PAGEABLE_OUT_SHARE)
        if isinstance(placement, GroupOffload):
            if placement.stream:
                return Call(max(busy_s, weight_bytes / (link * STREAM_SHARE)))
            return Call(busy_s + in_s + out_s)
        if placement.kind == "sequential_offload":
            return Call(busy_s + in_s)
        return Call(busy_s, in_s + (out_s if placement.kind == "model_offload" else 0.0))
