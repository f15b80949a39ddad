"""A component's repeated blocks and what they weigh: what streaming moves, predicted from names.

Agrees with `tuner/pipeline/streaming`, which sees the modules themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

from registry.inventory import ComponentInventory, LinearLayer
from registry.plan import Dtype, Quantization, StreamedBlocks
from tuner.layers import DTYPE_BYTES, component_bytes, quantized_layer_bytes
from tuner.spread import slot_bytes, streamed_blocks

FEWEST_MEMBERS = 3
"""Of a list, to take it for one of blocks where the inventory names none."""


@dataclass(frozen=True)
class Blocks:
    """The repeated blocks in the module's order: their classes, elements, and bytes."""

    kinds: tuple[str, ...]
    elements: tuple[int, ...]
    sizes: tuple[int, ...]

    def streamed(self, placement: StreamedBlocks) -> tuple[bool, ...]:
        return _streamed(self.kinds, self.elements, placement.resident_blocks, placement.slots)

    def link_bytes(self, placement: StreamedBlocks) -> int:
        """What is copied to the device for each call."""
        return sum(compress(self.sizes, self.streamed(placement)))

    def saved_bytes(self, placement: StreamedBlocks) -> int:
        """How much less of the device the component takes than it would resident."""
        streamed = self.streamed(placement)
        slots = slot_bytes(self.kinds, self.sizes, streamed, placement.slots)
        return sum(compress(self.sizes, streamed)) - sum(slots.values())


@lru_cache(maxsize=1024)
def _streamed(
    kinds: tuple[str, ...], elements: tuple[int, ...], resident: int, slots: int
) -> tuple[bool, ...]:
    """Quantization changes no elements: all of a model's schemes share this."""
    return streamed_blocks(kinds, elements, resident, slots)


def block_kinds(component: ComponentInventory) -> dict[str, str]:
    """The class of each block by its name; by the name of its list where the inventory names no
    classes, as for text encoders. Empty for a VAE, which never streams."""
    if component.role == "vae":
        return {}
    if component.repeated_blocks:
        return {name: item.class_name for item in component.repeated_blocks for name in item.names}
    members: dict[str, dict[str, None]] = {}
    for layer in component.linears:
        if found := _outermost(layer.name):
            members.setdefault(found[0], {})[found[1]] = None
    return {
        f"{owner}.{index}": owner
        for owner, indices in members.items()
        if len(indices) >= FEWEST_MEMBERS
        for index in indices
    }


def blocks_of(
    component: ComponentInventory,
    touched: Sequence[LinearLayer],
    quantization: Quantization,
    dtype: Dtype,
) -> Blocks:
    """The blocks with these layers quantized. Their other layers weigh next to nothing."""
    return WeightTable().blocks(component, touched, quantization, dtype)


@dataclass(frozen=True)
class Weights:
    """Bytes of a component's weights and buffers, and elements of its largest quantized layer."""

    total_bytes: int
    largest_quantized: int


class WeightTable:
    """What components of one model weigh, remembered: many choices share a quantization."""

    def __init__(self) -> None:
        self._weights: dict[tuple[str, Quantization, Dtype], Weights] = {}
        self._blocks: dict[tuple[str, Quantization, Dtype], Blocks] = {}
        self._owned: dict[str, tuple[tuple[LinearLayer, str], ...]] = {}

    def weights(
        self,
        component: ComponentInventory,
        touched: Sequence[LinearLayer],
        quantization: Quantization,
        dtype: Dtype,
    ) -> Weights:
        key = (component.name, quantization, dtype)
        if key not in self._weights:
            self._weights[key] = Weights(
                component_bytes(component, touched, quantization, dtype),
                max((layer.weight_elements for layer in touched), default=0),
            )
        return self._weights[key]

    def blocks(
        self,
        component: ComponentInventory,
        touched: Sequence[LinearLayer],
        quantization: Quantization,
        dtype: Dtype,
    ) -> Blocks:
        """As `blocks_of`."""
        key = (component.name, quantization, dtype)
        if key not in self._blocks:
            self._blocks[key] = self._count(component, touched, quantization, dtype)
        return self._blocks[key]

    def _count(
        self,
        component: ComponentInventory,
        touched: Sequence[LinearLayer],
        quantization: Quantization,
        dtype: Dtype,
    ) -> Blocks:
        kinds = block_kinds(component)
        elements, sizes = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
        quantized = {layer.name for layer in touched}
        for layer, block in self._in_blocks(component, kinds):
            bias = layer.out_features if layer.bias else 0
            is_quantized = layer.name in quantized
            plain = layer.weight_elements * DTYPE_BYTES[dtype]
            scheme = quantization.wanted(layer.name)
            weight = quantized_layer_bytes(layer, scheme) if is_quantized else plain
            elements[block] += layer.weight_elements + bias
            sizes[block] += weight + bias * DTYPE_BYTES[dtype]
        return Blocks(tuple(kinds.values()), tuple(elements.values()), tuple(sizes.values()))

    def _in_blocks(
        self, component: ComponentInventory, kinds: dict[str, str]
    ) -> tuple[tuple[LinearLayer, str], ...]:
        if component.name not in self._owned:
            owners = ((layer, _block(layer.name, kinds)) for layer in component.linears)
            self._owned[component.name] = tuple(
                (layer, block) for layer, block in owners if block is not None
            )
        return self._owned[component.name]


def can_stream(component: ComponentInventory, placement: StreamedBlocks) -> bool:
    """Whether any of a component's blocks would leave the device. Where none is to stay, what they
    weigh does not matter."""
    if not placement.resident_blocks:
        members = Counter(block_kinds(component).values())
        return any(count > placement.slots for count in members.values())
    return any(blocks_of(component, (), Quantization(), "bfloat16").streamed(placement))


def _outermost(name: str) -> tuple[str, str] | None:
    """ "encoder.block.3.layer.0.q" is in member "3" of the list "encoder.block"."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal() and place:
            return ".".join(parts[:place]), part
    return None


def _block(name: str, kinds: dict[str, str]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in kinds), None)
