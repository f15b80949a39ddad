"""A component's repeated blocks and what they weigh: what streaming moves, predicted from names.

Agrees with `tuner/pipeline/streaming`, which sees the modules themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

from registry.inventory import ComponentInventory, LinearLayer
from registry.plan import Dtype, Quantization, StreamedBlocks
from tuner.layers import DTYPE_BYTES, quantized_layer_bytes
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
        resident, slots = placement.resident_blocks, placement.slots
        return streamed_blocks(self.kinds, self.elements, resident, slots)

    def link_bytes(self, placement: StreamedBlocks) -> int:
        """What is copied to the device for each call."""
        return sum(compress(self.sizes, self.streamed(placement)))

    def saved_bytes(self, placement: StreamedBlocks) -> int:
        """How much less of the device the component takes than it would resident."""
        streamed = self.streamed(placement)
        slots = slot_bytes(self.kinds, self.sizes, streamed, placement.slots)
        return sum(compress(self.sizes, streamed)) - sum(slots.values())


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
    kinds = block_kinds(component)
    elements, sizes = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    quantized = {layer.name for layer in touched}
    for layer in component.linears:
        block = _block(layer.name, kinds)
        if block is not None:
            bias = layer.out_features if layer.bias else 0
            is_quantized = layer.name in quantized
            plain = layer.weight_elements * DTYPE_BYTES[dtype]
            scheme = quantization.wanted(layer.name)
            weight = quantized_layer_bytes(layer, scheme) if is_quantized else plain
            elements[block] += layer.weight_elements + bias
            sizes[block] += weight + bias * DTYPE_BYTES[dtype]
    return Blocks(tuple(kinds.values()), tuple(elements.values()), tuple(sizes.values()))


def can_stream(component: ComponentInventory, placement: StreamedBlocks) -> bool:
    """Whether any of a component's blocks would leave the device."""
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
