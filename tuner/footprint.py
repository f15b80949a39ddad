"""What one component weighs under one choice, and where: on the device, idle or running, or on the
host."""

from __future__ import annotations

from dataclasses import dataclass, replace

from registry.inventory import ComponentInventory, LinearLayer
from registry.plan import ComponentPlan, Dtype, GroupOffload, Placement, StreamedBlocks
from tuner.blocks import Blocks, WeightTable
from tuner.layers import DTYPE_BYTES, block_groups

QUANTIZING_FACTOR = 5
"""Quantizing one layer holds its weight, float32 copies and the result, over the weight alone."""
PINNED_MINIMUM_BYTES = 4096
BLOCKS_LEAVING = 4
"""As a component that streams is loaded, so many of its blocks are being filled or wait to leave
the device."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one component under one choice, which quantizes the `touched` layers.

    `active_bytes` are on the device while it runs, `idle_bytes` the rest of the time, `host_bytes`
    stay on the host; `link_bytes` of them stream to the device in each call.
    `load_scratch_bytes` is what quantizing its largest layer takes, and blocks on their way to the
    host.
    """

    component: ComponentInventory
    choice: ComponentPlan
    touched: tuple[LinearLayer, ...]
    weight_bytes: int
    active_bytes: int
    idle_bytes: int
    host_bytes: int
    load_scratch_bytes: int
    link_bytes: int = 0

    @property
    def lingers(self) -> bool:
        """Model offload leaves a component on the device until the next one so placed runs."""
        return self.choice.placement.kind == "model_offload"


def footprint(
    component: ComponentInventory,
    choice: ComponentPlan,
    touched: tuple[LinearLayer, ...],
    dtype: Dtype,
    table: WeightTable | None = None,
) -> Footprint:
    """What a component weighs with these layers quantized, and where. `table` remembers this
    model's weights."""
    table = table or WeightTable()
    counted = table.weights(component, touched, choice.quantization, dtype)
    weights = counted.total_bytes
    plain = Footprint(
        component=component,
        choice=choice,
        touched=touched,
        weight_bytes=weights,
        active_bytes=_active_bytes(component, choice.placement, weights, dtype),
        idle_bytes=weights if choice.placement.kind == "resident" else 0,
        host_bytes=_host_bytes(component, choice.placement, weights, dtype),
        load_scratch_bytes=counted.largest_quantized * DTYPE_BYTES[dtype] * QUANTIZING_FACTOR,
    )
    if not isinstance(choice.placement, StreamedBlocks):
        return plain
    blocks = table.blocks(component, touched, choice.quantization, dtype)
    return _streamed(plain, choice.placement, blocks)


def _streamed(plain: Footprint, placement: StreamedBlocks, blocks: Blocks) -> Footprint:
    """What is on the device is there from load to the end, slots included."""
    on_device = plain.weight_bytes - blocks.saved_bytes(placement)
    link_bytes = blocks.link_bytes(placement)
    leaving = BLOCKS_LEAVING * max(blocks.sizes, default=0)
    return replace(
        plain,
        active_bytes=on_device,
        idle_bytes=on_device,
        host_bytes=link_bytes,
        load_scratch_bytes=plain.load_scratch_bytes + leaving,
        link_bytes=link_bytes,
    )


def _active_bytes(
    component: ComponentInventory, placement: Placement, weights: int, dtype: Dtype
) -> int:
    """At most the whole component: small ones have groups as large as themselves."""
    leaf = component.largest_leaf_elements * DTYPE_BYTES[dtype]
    if placement.kind == "sequential_offload":
        return min(leaf, weights)
    if isinstance(placement, GroupOffload):
        held = 2 if placement.stream else 1
        if placement.granularity == "leaf":
            return min(held * leaf, weights)
        return min(_block_bytes(component, placement, dtype, held), weights)
    return weights


def _block_bytes(
    component: ComponentInventory, placement: GroupOffload, dtype: Dtype, held: int
) -> int:
    """The groups on the device, and what belongs to no block: it stays for the whole call."""
    groups = block_groups(component).values()
    outside = component.elements - sum(groups)
    largest = max(groups, default=0) * placement.blocks_per_group
    return (held * largest + outside) * DTYPE_BYTES[dtype]


def _host_bytes(
    component: ComponentInventory, placement: Placement, weights: int, dtype: Dtype
) -> int:
    if placement.kind == "resident":
        return 0
    if isinstance(placement, GroupOffload) and placement.stream:
        return _pinned_bytes(component, weights, dtype)
    return weights


def _pinned_bytes(component: ComponentInventory, weights: int, dtype: Dtype) -> int:
    """torch's pinned allocator rounds every tensor up to a power of two."""
    sizes = [layer.weight_elements * DTYPE_BYTES[dtype] for layer in component.linears]
    rounded = sum(1 << (size - 1).bit_length() for size in sizes if size >= PINNED_MINIMUM_BYTES)
    whole = sum(size for size in sizes if size >= PINNED_MINIMUM_BYTES)
    return max(weights - whole, 0) + rounded
