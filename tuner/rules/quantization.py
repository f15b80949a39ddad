"""What each quantization scheme needs. Checked against torchao 0.18's source and on a CPU."""

from __future__ import annotations

from tuner.layers import FLOAT8_PRODUCTS, few_row_layers
from tuner.rules.base import ComponentSubject, Rule, below, is_cuda

FLOAT8_CAPABILITY = (8, 9)
INT_MM_MULTIPLE = 8
SLOW_INT_MM_CAPABILITY = (10, 3)


def _is_int8_dynamic_on_cuda(subject: ComponentSubject) -> bool:
    return "int8_dynamic" in subject.schemes and is_cuda(subject.environment)


def _lacks_torchao(subject: ComponentSubject) -> bool:
    return subject.quantized and subject.environment.runtime.torchao is None


def _lacks_float8_compute(subject: ComponentSubject) -> bool:
    if not FLOAT8_PRODUCTS & subject.schemes:
        return False
    return not is_cuda(subject.environment) or below(subject.environment, FLOAT8_CAPABILITY)


def _is_row_scaled_outside_bfloat16(subject: ComponentSubject) -> bool:
    return "float8_dynamic_row" in subject.schemes and subject.dtype != "bfloat16"


def _is_float8_compiled_on_old_gpu(subject: ComponentSubject) -> bool:
    is_float8 = "float8_weight_only" in subject.schemes
    return is_float8 and subject.compiled and below(subject.environment, FLOAT8_CAPABILITY)


def _is_int8_dynamic_uncompiled(subject: ComponentSubject) -> bool:
    return _is_int8_dynamic_on_cuda(subject) and not subject.compiled


def _sees_too_few_rows(subject: ComponentSubject) -> bool:
    if not _is_int8_dynamic_on_cuda(subject):
        return False
    few = few_row_layers(subject.inventory, subject.component.name)
    return any(layer.name in few for layer in subject.touched_by("int8_dynamic"))


def _falls_back_to_host_matmul(subject: ComponentSubject) -> bool:
    if not _is_int8_dynamic_on_cuda(subject):
        return False
    return any(
        layer.in_features % INT_MM_MULTIPLE or layer.out_features % INT_MM_MULTIPLE
        for layer in subject.touched_by("int8_dynamic")
    )


def _has_slow_int_mm(subject: ComponentSubject) -> bool:
    own = subject.environment.hardware.compute_capability
    return _is_int8_dynamic_on_cuda(subject) and own == SLOW_INT_MM_CAPABILITY


def _quantizes_nothing(subject: ComponentSubject) -> bool:
    return subject.quantized and not subject.touched


RULES: tuple[Rule[ComponentSubject], ...] = (
    Rule(
        "torchao-missing",
        "impossible",
        "quantization needs the torchao package, which is not installed",
        "docs.pytorch.org/ao",
        _lacks_torchao,
    ),
    Rule(
        "float8-dynamic-capability",
        "impossible",
        "float8 arithmetic needs an NVIDIA GPU of compute capability 8.9 or newer",
        "torchao quant_api.py; tests/tuner/test_rules.py",
        _lacks_float8_compute,
    ),
    Rule(
        "float8-row-bfloat16",
        "impossible",
        "float8 with a scale per row takes bfloat16 weights only",
        "torchao quant_api.py",
        _is_row_scaled_outside_bfloat16,
    ),
    Rule(
        "float8-compiled-capability",
        "impossible",
        "Triton has no float8 (e4m3) conversion for GPUs older than compute capability 8.9, "
        "so a compiled float8 layer does not build",
        "pytorch#167082",
        _is_float8_compiled_on_old_gpu,
    ),
    Rule(
        "int8-dynamic-uncompiled",
        "useless",
        "int8 arithmetic without torch.compile is up to 20 times slower than bfloat16",
        "github.com/sayakpaul/diffusers-torchao, benchmarks",
        _is_int8_dynamic_uncompiled,
    ),
    Rule(
        "int8-dynamic-rows",
        "impossible",
        "int8 matrix multiplication on CUDA needs more than 16 rows, and some of these layers see "
        "one row per picture",
        "pytorch aten/native/cuda/Blas.cpp, _int_mm",
        _sees_too_few_rows,
    ),
    Rule(
        "int8-dynamic-multiple",
        "useless",
        "int8 layers whose sizes are not multiples of 8 are multiplied on the host",
        "torchao kernel/intmm.py, safe_int_mm",
        _falls_back_to_host_matmul,
    ),
    Rule(
        "int8-dynamic-blackwell-ultra",
        "useless",
        "int8 matrix multiplication uses kernels of an older GPU generation here and is slower "
        "than bfloat16",
        "pytorch#187094",
        _has_slow_int_mm,
    ),
    Rule(
        "quantizes-nothing",
        "useless",
        "no layer of this component is one the scheme would change",
        "tests/tuner/test_rules.py",
        _quantizes_nothing,
    ),
)
