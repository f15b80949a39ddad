"""Blocks of one kind that take turns in a few slots on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tuner.pipeline.streaming.layout import BlockTensors, Places, bind
from tuner.pipeline.streaming.link import Buffer, PlainLink


class Slot:
    """A buffer, and the block whose weights are in it or on their way."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.holder: StreamedBlock | None = None


class StreamedBlock:
    """One block's weights on the host, and its tensors over each slot. Its module's own tensors
    are those of the slot it was last copied to."""

    def __init__(self, block: nn.Module, host: torch.Tensor, slots: Sequence[Slot]) -> None:
        tensors = BlockTensors(block)
        self.host = host
        self.slot: Slot | None = None
        self.next: StreamedBlock = self
        self._bound: Slot | None = None
        self._over: dict[Slot, Places] = {slot: tensors.over(slot.buffer.run) for slot in slots}

    def bind(self, slot: Slot) -> None:
        """Only tensors' addresses change, so compiled code stays valid."""
        if self._bound is not slot:
            bind(self._over[slot])
            self._bound = slot


class Lane:
    """Loads each block before it runs, and the next ones while it runs.

    Which block comes next is learnt from the calls, and first taken to be the modules' order; the
    last is followed by the first, of the next step. A block that comes unexpectedly is copied on
    demand: an order that changes costs time and never a result.
    """

    def __init__(self, link: PlainLink, slots: Sequence[Slot]) -> None:
        self._link = link
        self._slots = list(slots)
        self._last: StreamedBlock | None = None

    def start(self, blocks: Sequence[StreamedBlock]) -> None:
        """Begin to load the first of `blocks`; every block has a place from here on."""
        for number, block in enumerate(blocks):
            block.next = blocks[(number + 1) % len(blocks)]
            block.bind(self._slots[number % len(self._slots)])
        self._load_after(blocks[-1])

    def enter(self, block: StreamedBlock) -> Slot:
        """Before the block computes; its weights are in the slot until `leave`."""
        slot = block.slot or self._load(block, self._slots[0])
        self._link.wait(slot.buffer)
        return slot

    def leave(self, block: StreamedBlock, slot: Slot, *, failed: bool) -> None:
        """After it; a call that failed teaches nothing about the order."""
        self._link.used(slot.buffer)
        self._slots.remove(slot)
        self._slots.append(slot)
        if self._last is not None and self._last is not block:
            self._last.next = block
        self._last = None if failed else block
        self._load_after(block)

    def _load_after(self, block: StreamedBlock) -> None:
        """Fill the slots with the blocks that come next."""
        wanted: list[StreamedBlock] = []
        coming = block.next
        while len(wanted) < len(self._slots) and coming not in wanted:
            wanted.append(coming)
            coming = coming.next
        spare = [slot for slot in self._slots if slot.holder not in wanted]
        missing = [item for item in wanted if item.slot is None]
        for item, slot in zip(missing, spare, strict=False):
            self._load(item, slot)

    def _load(self, block: StreamedBlock, slot: Slot) -> Slot:
        if slot.holder is not None:
            slot.holder.slot = None
        slot.holder = None
        self._link.copy(block.host, slot.buffer)
        slot.holder, block.slot = block, slot
        block.bind(slot)
        return slot
