"""What torchao's own autoquant (0.3 to 0.16) measured, as timings that rank but prove nothing.

Its cache maps (class, activation size, weight size, bias size, dtype) to milliseconds, infinity for
what failed and None for what was seen and never timed. Neither GPU nor version is in it: the user
says which machine it was, and the runtime is one that no machine has. It kept no spread either, so
a time comes in as "noisy", which a study takes again before it relies on it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from registry.environment import Hardware, Runtime
from registry.errors import InvalidInput
from registry.plan import Dtype, Scheme
from registry.timing import Timing, TimingKey
from tuner.legacy_pickle import Name, read_pickled_entries

LEGACY_RUNTIME = Runtime(
    python="unknown",
    torch=None,
    torchao="0.3 to 0.16",
    diffusers=None,
    transformers=None,
    accelerate=None,
    apply_engine=0,
)
"""Equal to no machine's: detection always knows the Python, and apply engines begin at 1."""

MODULE = "torchao.quantization.autoquant"
MESSAGE = "from a torchao autoquant cache"

DTYPES: dict[str, Dtype] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}

SCHEMES: dict[str, Scheme] = {
    "AQDefaultLinearWeight": "none",
    "AQFloatLinearWeight": "none",
    "AQInt8DynamicallyQuantizedLinearWeight": "int8_dynamic",
    "AQWeightOnlyQuantizedLinearWeight": "int8_weight_only",
    "AQWeightOnlyQuantizedLinearWeight2": "int8_weight_only",
    "AQWeightOnlyQuantizedLinearWeight3": "int8_weight_only",
    "AQInt8WeightOnlyQuantizedLinearWeight": "int8_weight_only",
    "AQInt8WeightOnlyQuantizedLinearWeight2": "int8_weight_only",
    "AQInt8WeightOnlyQuantizedLinearWeight3": "int8_weight_only",
    "AQFloat8WeightOnlyQuantizedLinearWeight": "float8_weight_only",
    "AQFloat8PerRowScalingDynamicallyQuantizedLinearWeight": "float8_dynamic_row",
    "AQFloat8PerTensorScalingDynamicallyQuantizedLinearWeight": "float8_dynamic_tensor",
}
"""torchao/quantization/autoquant.py, 0.3 to 0.16. Three kernels of int8 weight-only have classes of
their own: the fastest is the scheme's time."""

CASTS: dict[str, Dtype] = {
    "AQFloat32LinearWeight": "float32",
    "AQBFloat16LinearWeight": "bfloat16",
    "AQFloat16LinearWeight": "float16",
}
"""Compute in this dtype. Unquantized where the activations have it; else no scheme of ours."""


@dataclass(frozen=True)
class LegacyCache:
    """`unknown` counts the entries of classes that no scheme here stands for, `malformed` the
    others that could not be read, `untimed` those that autoquant saw and never timed."""

    timings: tuple[Timing, ...]
    unknown: dict[str, int]
    malformed: int
    untimed: int


class _UnknownClassError(Exception):
    pass


class _MalformedError(Exception):
    pass


def read_legacy_cache(data: bytes, hardware: Hardware) -> LegacyCache:
    """Raises InvalidInput where it is no such cache, or holds nothing that can be used."""
    best: dict[TimingKey, Timing] = {}
    unknown: Counter[str] = Counter()
    malformed = untimed = 0
    for key, value in read_pickled_entries(data):
        try:
            timing = _timing(key, value, hardware.digest)
        except _UnknownClassError as error:
            unknown[str(error)] += 1
        except _MalformedError:
            malformed += 1
        else:
            untimed += value is None
            best[timing.key] = _better(timing, best.get(timing.key))
    if not best:
        raise InvalidInput(
            f"nothing in it can be used: {sum(unknown.values())} entries of unknown classes, "
            f"{malformed} malformed"
        )
    return LegacyCache(tuple(best.values()), dict(unknown), malformed, untimed)


def _better(timing: Timing, before: Timing | None) -> Timing:
    if before is None or before.median_ms is None:
        return timing
    if timing.median_ms is None:
        return before
    return min(timing, before, key=lambda item: item.median_ms or math.inf)


def _timing(key: Any, value: Any, hardware: str) -> Timing:
    if not isinstance(key, tuple) or len(key) != 5:
        raise _MalformedError
    class_name, activation, weight, bias, dtype_name = key
    dtype = _dtype(dtype_name)
    timing_key = TimingKey(
        hardware=hardware,
        runtime=LEGACY_RUNTIME.digest,
        kind="linear",
        name="linear",
        shape=_shape(activation, weight),
        dtype=dtype,
        bias=bias is not None,
        scheme=_scheme(class_name, dtype),
    )
    return _outcome(timing_key, value)


def _outcome(key: TimingKey, value: Any) -> Timing:
    if value is None:
        message = f"{MESSAGE}: never timed"
        return Timing(key=key, outcome="failed", samples=0, message=message)
    if not isinstance(value, float) or not value > 0:
        raise _MalformedError
    if math.isinf(value):
        message = f"{MESSAGE}: it could not be timed"
        return Timing(key=key, outcome="failed", samples=0, message=message)
    return Timing(key=key, outcome="noisy", median_ms=value, mad_ms=0.0, samples=1, message=MESSAGE)


def _scheme(found: Any, dtype: Dtype) -> Scheme:
    if not isinstance(found, Name) or found.module == "torch":
        raise _MalformedError
    if found.module != MODULE:
        raise _UnknownClassError(str(found))
    if CASTS.get(found.name) == dtype:
        return "none"
    if found.name not in SCHEMES:
        raise _UnknownClassError(found.name)
    return SCHEMES[found.name]


def _dtype(found: Any) -> Dtype:
    if not isinstance(found, Name) or found.module != "torch" or found.name not in DTYPES:
        raise _MalformedError
    return DTYPES[found.name]


def _shape(activation: Any, weight: Any) -> tuple[int, int, int]:
    """(M, K, N) of activations (M, K) and weights (N, K)."""
    for size in (activation, weight):
        if not isinstance(size, tuple) or len(size) != 2 or not all(map(_is_size, size)):
            raise _MalformedError
    if activation[1] != weight[1]:
        raise _MalformedError
    return (*activation, weight[0])


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31
