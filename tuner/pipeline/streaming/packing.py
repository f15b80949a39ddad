"""Moves blocks to host memory that the device can read at full speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

from tuner.pipeline.streaming.layout import BlockTensors, bind
from tuner.pipeline.streaming.link import link_to

LOCKING_THREADS = 4
"""Page-locking takes about a second for each few gigabytes, and waits for the kernel."""
BLOCKS_AHEAD = 2
"""So many blocks wait where they are for their host memory."""
HOST_RUN = "_host_run"
"""Where the one run of bytes that holds a packed block is found in its module's `__dict__`."""


def pack_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Move each block's tensors to a run of host memory of its own, in place, from which `device`
    reads at full speed. Blocks are taken as
    they come, and page-locking goes on beside that: neither host nor device holds a second copy of
    more than a few. Raises HostMemoryError; blocks packed by then are usable."""
    link = link_to(device)
    waiting = deque[tuple[BlockTensors, Future[torch.Tensor]]]()
    with ThreadPoolExecutor(LOCKING_THREADS) as pool, torch.inference_mode(mode=False):
        for block in blocks:
            if packed_run(block) is None:
                tensors = BlockTensors(block)
                waiting.append((tensors, pool.submit(link.host, tensors.size)))
            if len(waiting) > BLOCKS_AHEAD:
                _pack(*waiting.popleft())
        while waiting:
            _pack(*waiting.popleft())


def packed_run(block: nn.Module) -> torch.Tensor | None:
    """The bytes of a packed block, in the layout of `BlockTensors`; None for another block."""
    run: torch.Tensor | None = block.__dict__.get(HOST_RUN)
    return run


def _pack(tensors: BlockTensors, memory: Future[torch.Tensor]) -> None:
    run = memory.result()
    with torch.no_grad():
        tensors.pack(run)
        bind(tensors.over(run))
    tensors.block.__dict__[HOST_RUN] = run
