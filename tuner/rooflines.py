"""What a device can do at its best: from its generation, its width and its clock, not its name.

Peaks come from the vendors' architecture papers; `Efficiency` says how much of a peak real kernels
reach. The efficiencies of compute capability 9.0 were measured (FLUX.1-dev at 1024², torch 2.11,
one H200: 790 TFLOP/s of bfloat16 matrix products, 1,350 of float8, 55 GB/s over its PCIe link);
the others are guesses between published figures, and trials correct them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.environment import Hardware
from registry.plan import AttentionBackend, Dtype, LayerScheme

TENSOR_FLOPS_PER_CLOCK: dict[tuple[int, int], int] = {
    (7, 0): 1024,
    (7, 5): 512,
    (8, 0): 2048,
    (8, 6): 512,
    (8, 7): 1024,
    (8, 9): 512,
    (9, 0): 4096,
    (10, 0): 8192,
    (10, 3): 8192,
    (12, 0): 512,
}
"""Dense bfloat16 (float16 before 8.0) FLOPs of one multiprocessor in one clock."""
FLOAT8_CAPABILITY = (8, 9)
INT8_CAPABILITY = (8, 0)
FLOAT32_SHARE = 1 / 8
"""Of the bfloat16 rate, without TF32."""
DEFAULT_CLOCK_MHZ = 1500
DEFAULT_MULTIPROCESSORS = 40
DEFAULT_BANDWIDTH = {7: 0.5e12, 8: 0.7e12, 9: 3.3e12, 10: 7e12, 12: 0.9e12}
"""Bytes a second by major capability, where NVML does not say."""
PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.97e9, 5: 3.94e9, 6: 7.56e9}
LINK_EFFICIENCY = 0.87
DEFAULT_LINK_BYTES_PER_S = 12e9
CPU_CLOCK_HZ = 2.5e9
CPU_FLOAT32_FLOPS_PER_CLOCK = {"avx512": 64, "avx2": 32, "sve": 32, "avx": 16, "neon": 16}
CPU_DEFAULT_FLOPS_PER_CLOCK = 8
CPU_BANDWIDTH_BYTES_PER_S = 20e9


@dataclass(frozen=True)
class Peaks:
    """A device's ceilings. FLOP/s of matrix products by the type they are computed in; bytes/s of
    its own memory and of the link to the host (0 on a CPU, which has none)."""

    is_cuda: bool
    bfloat16: float
    float32: float
    float8: float
    int8: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    capability: tuple[int, int] | None = None

    def matmul(self, dtype: Dtype) -> float:
        return self.float32 if dtype == "float32" else self.bfloat16


def peaks_of(hardware: Hardware, cpu_isa: str | None = None) -> Peaks:
    """The ceilings of a device; `cpu_isa` as in `Runtime`, None for the narrowest guess."""
    if hardware.device == "cpu":
        return _cpu_peaks(hardware, cpu_isa or "")
    capability = hardware.compute_capability or (8, 0)
    clock_hz = (hardware.sm_clock_mhz or DEFAULT_CLOCK_MHZ) * 1e6
    width = hardware.multiprocessors or DEFAULT_MULTIPROCESSORS
    bfloat16 = _flops_per_clock(capability) * width * clock_hz
    bandwidth = hardware.memory_bandwidth_bytes_per_s
    return Peaks(
        is_cuda=True,
        bfloat16=bfloat16,
        float32=bfloat16 * FLOAT32_SHARE,
        float8=bfloat16 * (2 if capability >= FLOAT8_CAPABILITY else 1),
        int8=bfloat16 * (2 if capability >= INT8_CAPABILITY else 1),
        memory_bytes_per_s=float(bandwidth or DEFAULT_BANDWIDTH.get(capability[0], 0.7e12)),
        link_bytes_per_s=link_bytes_per_s(hardware.link_bandwidth_class),
        capability=capability,
    )


def link_bytes_per_s(link_class: str) -> float:
    """What pinned copies reach over a link such as "pcie5x16"; a modest guess for others."""
    if found := re.fullmatch(r"pcie(\d+)x(\d+)", link_class):
        lane = PCIE_LANE_BYTES_PER_S.get(int(found[1]), PCIE_LANE_BYTES_PER_S[6])
        return max(lane * int(found[2]) * LINK_EFFICIENCY, 0.1e9)
    return DEFAULT_LINK_BYTES_PER_S


def _flops_per_clock(capability: tuple[int, int]) -> int:
    """Of the newest generation known that is not newer than this one."""
    known = [key for key in TENSOR_FLOPS_PER_CLOCK if key <= capability]
    return TENSOR_FLOPS_PER_CLOCK[max(known, default=(7, 5))]


def _cpu_peaks(hardware: Hardware, isa: str) -> Peaks:
    words = isa.split()
    known = (CPU_FLOAT32_FLOPS_PER_CLOCK.get(word) for word in words)
    per_clock = next(filter(None, known), CPU_DEFAULT_FLOPS_PER_CLOCK)
    float32 = float(per_clock * hardware.cpu_cores * CPU_CLOCK_HZ)
    return Peaks(
        is_cuda=False,
        bfloat16=float32 * _bfloat16_gain(words),
        float32=float32,
        float8=float32,
        int8=float32 * _int8_gain(words),
        memory_bytes_per_s=CPU_BANDWIDTH_BYTES_PER_S,
        link_bytes_per_s=0.0,
    )


def _bfloat16_gain(words: list[str]) -> float:
    if "amx_bf16" in words:
        return 16.0
    return 2.0 if "avx512_bf16" in words or "bf16" in words else 0.25


def _int8_gain(words: list[str]) -> float:
    if "amx_int8" in words:
        return 32.0
    return 4.0 if {"avx512_vnni", "avx_vnni", "i8mm"} & set(words) else 1.0


LINEAR_EFFICIENCY: dict[LayerScheme, float] = {
    "none": 0.74,
    "int8_weight_only": 0.74,
    "float8_weight_only": 0.74,
    "float8_dynamic_tensor": 0.63,
    "float8_dynamic_row": 0.63,
    "float8_static_tensor": 0.63,
    "int8_dynamic": 0.48,
}
"""Of the peak at the boost clock. bfloat16 and float8 from the measured ceilings (790 and 1,350 of
1,070 and 2,141 TFLOP/s); int8 from diffusers-torchao's published ratio of int8 to float8."""
CONVOLUTION_EFFICIENCY = 0.35
CHANNELS_LAST_GAIN = 1.2

ATTENTION_EFFICIENCY: dict[AttentionBackend, dict[int, float]] = {
    "default": {8: 0.60, 9: 0.30, 10: 0.25, 12: 0.60},
    "_native_flash": {8: 0.60, 9: 0.30, 10: 0.20, 12: 0.60},
    "_native_cudnn": {8: 0.60, 9: 0.47, 10: 0.45, 12: 0.60},
    "cudnn_fp8": {9: 0.72},
    "_native_efficient": {7: 0.35, 8: 0.40, 9: 0.20, 10: 0.12, 12: 0.45},
    "_native_math": {},
    "flash": {8: 0.60, 9: 0.30, 10: 0.20, 12: 0.60},
    "flash_varlen": {8: 0.58, 9: 0.29, 10: 0.19, 12: 0.58},
    "_flash_3": {9: 0.50},
    "sage": {8: 0.90, 9: 0.50, 10: 0.30, 12: 0.90},
    "xformers": {7: 0.35, 8: 0.55, 9: 0.28, 10: 0.18, 12: 0.55},
}
"""Of the bfloat16 peak, by major capability. Measured on 9.0: cuDNN 506 TFLOP/s inside the model,
flash 320 (17.3 ms more than cuDNN for 14.9 TFLOP), cuDNN in float8 840 without the casts around it;
the rest is between published figures."""
UNKNOWN_ATTENTION_EFFICIENCY = 0.3
MATH_ATTENTION_EFFICIENCY = 0.04


def attention_efficiency(backend: AttentionBackend, peaks: Peaks) -> float:
    """Share of the bfloat16 (on a CPU: own dtype's) peak that a backend's kernels reach."""
    if backend == "_native_math":
        return MATH_ATTENTION_EFFICIENCY
    major = peaks.capability[0] if peaks.capability else 0
    return ATTENTION_EFFICIENCY[backend].get(major, UNKNOWN_ATTENTION_EFFICIENCY)
