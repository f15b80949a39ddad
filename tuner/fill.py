"""Streamed plans filled up: as many blocks stay on the device as a budget has room for.

Every resident block saves its copy in each step, so between none and as many as fit there is
nothing to search.
"""

from __future__ import annotations

from bisect import bisect_right

from registry.inventory import ModelInventory
from registry.plan import (
    ComponentPlan,
    Dtype,
    PipelineOptions,
    Plan,
    Quantization,
    StreamedBlocks,
)
from tuner.blocks import Blocks, WeightTable
from tuner.candidate import Candidate
from tuner.layers import LayerTable
from tuner.memory_model import WEIGHT_MARGIN

KEPT_FREE = 0.02
"""Of the budget: predictions of memory are off by so much before trials, and the next trial of a
plan that just failed to fit is a slower one."""


class Filler:
    """Fills plans of one model within one budget; remembers what plans share."""

    def __init__(
        self,
        inventory: ModelInventory,
        budget_bytes: int,
        layers: LayerTable | None = None,
        weights: WeightTable | None = None,
    ) -> None:
        self._layers, self._weights = layers or LayerTable(), weights or WeightTable()
        self._denoiser = inventory.denoiser
        self._room_bytes = round(budget_bytes * (1 - KEPT_FREE))
        self._rooms: dict[tuple[Quantization, Dtype, int], list[int]] = {}
        self._choices: dict[tuple[int, int], tuple[ComponentPlan, ComponentPlan]] = {}

    def filled(self, item: Candidate) -> Plan | None:
        """The plan with as many resident blocks as fit. None where its denoiser does not stream
        every block, where none more fits, or where all would: then a resident one serves."""
        choice = item.plan.pipeline.component(self._denoiser.name)
        placement = choice.placement
        if not isinstance(placement, StreamedBlocks) or placement.resident_blocks:
            return None
        spare = (self._room_bytes - item.estimate.peak_vram_bytes) / WEIGHT_MARGIN
        taken = self._taken(choice, item.plan.pipeline.dtype, placement)
        count = bisect_right(taken, spare) - 1
        if count < 1 or count >= len(taken) - 1:
            return None
        return self._with(item.plan, choice, count)

    def _taken(self, choice: ComponentPlan, dtype: Dtype, placement: StreamedBlocks) -> list[int]:
        """Bytes that 0, 1, … resident blocks take on the device, more than none does; the last is
        for the fewest with which nothing would stream."""
        key = (choice.quantization, dtype, placement.slots)
        if key not in self._rooms:
            touched = self._layers.quantized(self._denoiser, choice.quantization)
            blocks = self._weights.blocks(self._denoiser, touched, choice.quantization, dtype)
            self._rooms[key] = taken_bytes(blocks, placement)
        return self._rooms[key]

    def _with(self, plan: Plan, choice: ComponentPlan, count: int) -> Plan:
        """Equal choices are one object, as `combine` makes them; the original is kept beside it, so
        that its identity cannot be given to another."""
        key = (id(choice), count)
        if key not in self._choices:
            placement = choice.placement.model_copy(update={"resident_blocks": count})
            self._choices[key] = (choice, choice.model_copy(update={"placement": placement}))
        components = {**plan.pipeline.components, self._denoiser.name: self._choices[key][1]}
        options = PipelineOptions(**(dict(plan.pipeline) | {"components": components}))
        return Plan(process=plan.process, pipeline=options)


def taken_bytes(blocks: Blocks, placement: StreamedBlocks) -> list[int]:
    """By the number of resident blocks, none in `placement`, up to the first with which nothing
    streams. Never falling, where another spread happens to take less."""
    found = [0]
    base = blocks.saved_bytes(placement)
    for count in range(1, len(blocks.kinds) + 1):
        more = placement.model_copy(update={"resident_blocks": count})
        found.append(max(found[-1], base - blocks.saved_bytes(more)))
        if not blocks.link_bytes(more):
            break
    return found
