"""Which layers a scheme touches, and what they weigh: the arithmetic under rules and estimates.

One definition, equal to what the apply engine does (`tuner.pipeline.quantize.scheme_of`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from functools import lru_cache

from registry.inventory import ComponentInventory, LinearLayer, ModelInventory
from registry.plan import Dtype, LayerScheme, Quantization

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
FLOAT8_PRODUCTS: frozenset[LayerScheme] = frozenset(
    {"float8_dynamic_tensor", "float8_dynamic_row", "float8_static_tensor"}
)
"""Schemes whose matrix products are computed in float8."""
FLOAT8_MULTIPLE = 16
"""torchao's fp8 matmul takes N and K in multiples of 16, and leaves other layers as they are."""
ACTIVATION_FLOOR = 1e-12
"""torchao 0.18 divides a row by its largest value: a row of zeros, as SDXL's empty negative prompt
has them, becomes NaN without a floor under that value."""
TAKEN_FOR_BLOCK_SCALED = (128, 128)
"""torchao 0.18 takes a per-tensor fp8 weight of this shape for one scaled in blocks of 128 by 128:
`_is_128_128_scaled` (float8/inference.py) looks at `block_size` alone, and the first call fails
with "input_tensor must be 1x128 scaled"."""
FEW_ROWS = 16
"""A layer that sees at most this many rows is a modulation or embedding layer: one per picture."""
SCALE_BYTES = 4
INT8_ROW_BYTES = 5
"""Per output row: a float32 scale and an int8 zero point."""


def scheme_of(layer: LinearLayer, quantization: Quantization) -> LayerScheme:
    """What a plan's quantization of a component makes of this layer, "none" for nothing."""
    wanted = quantization.wanted(layer.name)
    if not _is_reached(layer, quantization.min_features, _matcher(quantization.skip)):
        return "none"
    return wanted if takes_shape(wanted, layer.out_features, layer.in_features) else "none"


def _is_reached(layer: LinearLayer, min_features: int, skipped: Callable[[str], bool]) -> bool:
    smallest = min(layer.in_features, layer.out_features)
    return smallest >= max(min_features, 1) and not skipped(layer.name)


def is_quantized(layer: LinearLayer, quantization: Quantization) -> bool:
    """Whether a plan's quantization of a component changes this layer."""
    return scheme_of(layer, quantization) != "none"


def takes_shape(scheme: LayerScheme, rows: int, columns: int) -> bool:
    """Whether torchao's kernels take a weight of this shape under a scheme; the engine asks too."""
    if scheme not in FLOAT8_PRODUCTS:
        return True
    if rows % FLOAT8_MULTIPLE or columns % FLOAT8_MULTIPLE:
        return False
    return scheme != "float8_dynamic_tensor" or (rows, columns) != TAKEN_FOR_BLOCK_SCALED


def quantized_layers(
    component: ComponentInventory, quantization: Quantization
) -> tuple[LinearLayer, ...]:
    """The layers of a component that a quantization changes, in the inventory's order."""
    return LayerTable().quantized(component, quantization)


class LayerTable:
    """`quantized_layers` of one model, remembered: many choices of a component share a
    quantization, and schemes share the layers that they leave alone."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Quantization], tuple[LinearLayer, ...]] = {}
        self._reached: dict[tuple[str, int, tuple[str, ...]], tuple[LinearLayer, ...]] = {}

    def quantized(
        self, component: ComponentInventory, quantization: Quantization
    ) -> tuple[LinearLayer, ...]:
        if quantization.scheme == "none":
            return ()
        key = (component.name, quantization)
        if key not in self._known:
            reached = self._within_reach(component, quantization)
            self._known[key] = tuple(layer for layer in reached if _changes(quantization, layer))
        return self._known[key]

    def _within_reach(
        self, component: ComponentInventory, quantization: Quantization
    ) -> tuple[LinearLayer, ...]:
        """Neither skipped nor too small, whatever the scheme."""
        least, skip = quantization.min_features, quantization.skip
        key = (component.name, least, skip)
        if key not in self._reached:
            matcher = _matcher(skip)
            self._reached[key] = tuple(
                layer for layer in component.linears if _is_reached(layer, least, matcher)
            )
        return self._reached[key]


def _changes(quantization: Quantization, layer: LinearLayer) -> bool:
    wanted = quantization.wanted(layer.name)
    return wanted != "none" and takes_shape(wanted, layer.out_features, layer.in_features)


def quantized_layer_bytes(layer: LinearLayer, scheme: LayerScheme) -> int:
    """Bytes of one quantized weight with its scales (torchao 0.18), its bias apart."""
    if scheme in {"int8_weight_only", "int8_dynamic"}:
        return layer.weight_elements + INT8_ROW_BYTES * layer.out_features
    if scheme == "float8_dynamic_tensor":
        return layer.weight_elements + SCALE_BYTES
    if scheme == "float8_static_tensor":
        return layer.weight_elements + 2 * SCALE_BYTES
    return layer.weight_elements + SCALE_BYTES * layer.out_features


def component_bytes(
    component: ComponentInventory,
    touched: Sequence[LinearLayer],
    quantization: Quantization,
    dtype: Dtype,
) -> int:
    """Exact bytes of a component's weights and buffers with these layers quantized."""
    elements = component.elements - sum(layer.weight_elements for layer in touched)
    packed = sum(quantized_layer_bytes(layer, quantization.wanted(layer.name)) for layer in touched)
    return elements * DTYPE_BYTES[dtype] + packed + component.buffer_bytes


def block_groups(component: ComponentInventory) -> dict[str, int]:
    """Elements of each member of a component's own lists of blocks ("transformer_blocks.0",
    "up_blocks.1"): what block-level group offloading moves at once.

    Known from the linear layers' names; other layers are taken to be spread like them.
    """
    found: dict[str, int] = {}
    for layer in component.linears:
        group = _block_group(layer.name)
        if group is not None:
            found[group] = found.get(group, 0) + layer.weight_elements
    linear = sum(layer.weight_elements for layer in component.linears)
    return {name: size * component.elements // linear for name, size in found.items()}


def has_block_groups(component: ComponentInventory) -> bool:
    """Whether `block_groups` finds any."""
    return any(_block_group(layer.name) is not None for layer in component.linears)


def _block_group(name: str) -> str | None:
    owner, _, rest = name.partition(".")
    index, _, inside = rest.partition(".")
    return f"{owner}.{index}" if index.isdecimal() and inside else None


def few_row_layers(inventory: ModelInventory, component: str) -> frozenset[str]:
    """Layers that see at most `FEW_ROWS` rows at some profiled shape."""
    return frozenset(
        name
        for profile in inventory.profiles
        if (activity := profile.activity(component)) is not None
        for name, rows in activity.linear_rows.items()
        if 0 < rows <= FEW_ROWS
    )


def name_patterns(names: frozenset[str]) -> tuple[str, ...]:
    """Fewest patterns for these names: every run of digits between dots becomes `*`."""
    return tuple(sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names}))


@lru_cache(maxsize=256)
def _matcher(patterns: tuple[str, ...]) -> _AnyPattern:
    return _AnyPattern(patterns)


class _AnyPattern:
    """fnmatchcase against any of several patterns, as one compiled expression."""

    __slots__ = ("_expression",)

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._expression = re.compile("|".join(_alternatives(patterns))) if patterns else None

    def __call__(self, name: str) -> bool:
        return self._expression is not None and self._expression.match(name) is not None


def _alternatives(patterns: tuple[str, ...]) -> Iterator[str]:
    return (f"(?:{translate(pattern)})" for pattern in patterns)
