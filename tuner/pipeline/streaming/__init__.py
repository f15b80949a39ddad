"""Weights that stream: repeated blocks wait in page-locked host memory and take turns in a few
buffers on the device, each copied while the blocks before it compute.

    report = stream_blocks(transformer, torch.device("cuda"), resident_blocks=14)
    transformer.compile_repeated_blocks(fullgraph=True)

Needs torch alone. An exported script carries these modules as they stand.
"""

from tuner.pipeline.streaming.engine import (
    NothingToStream,
    StreamReport,
    stream_blocks,
    streamed_names,
)
from tuner.pipeline.streaming.host import HostMemoryError
from tuner.pipeline.streaming.packing import pack_blocks

__all__ = [
    "HostMemoryError",
    "NothingToStream",
    "StreamReport",
    "pack_blocks",
    "stream_blocks",
    "streamed_names",
]
