"""Copies from host to device beside the computation, and who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tuner.pipeline.streaming.host import host_bytes, locked_bytes


@dataclass(frozen=True, eq=False)
class Buffer:
    """Bytes on the device that blocks take turns in."""

    run: torch.Tensor


@dataclass(frozen=True)
class Events:
    """`ready` is when the last copy into a buffer is done, `free` when the last computation that
    uses it is."""

    ready: torch.cuda.Event
    free: torch.cuda.Event


class PlainLink:
    """To a device that copies synchronously: the CPU, which plays the device in tests."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def buffer(self, size: int) -> Buffer:
        return Buffer(torch.empty(size, dtype=torch.uint8, device=self.device))

    def host(self, size: int) -> torch.Tensor:
        """Host memory that this link reads at full speed, shape (size,). Any thread may ask."""
        return host_bytes(size)

    def copy(self, source: torch.Tensor, target: Buffer) -> None:
        """Begin a copy, once nothing computed so far uses `target` any more."""
        target.run[: source.numel()].copy_(source)

    def wait(self, target: Buffer) -> None:
        """What is computed from here on sees the last copy into `target`."""

    def used(self, target: Buffer) -> None:
        """What was computed so far uses `target`: its next copy waits for it."""


class CudaLink(PlainLink):
    """One stream of copies, in the order in which blocks need them. The host waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._events: dict[Buffer, Events] = {}

    def buffer(self, size: int) -> Buffer:
        made = super().buffer(size)
        # Once, for the end: its memory serves nobody else before the last copy into it is done.
        made.run.record_stream(self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self._events[made] = Events(torch.cuda.Event(), torch.cuda.Event())
        return made

    def host(self, size: int) -> torch.Tensor:
        return locked_bytes(size, self.device)

    def copy(self, source: torch.Tensor, target: Buffer) -> None:
        events = self._events[target]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(events.free)
            target.run[: source.numel()].copy_(source, non_blocking=True)
            events.ready.record(self._stream)

    def wait(self, target: Buffer) -> None:
        torch.cuda.current_stream(self.device).wait_event(self._events[target].ready)

    def used(self, target: Buffer) -> None:
        self._events[target].free.record(torch.cuda.current_stream(self.device))


def link_to(device: torch.device) -> PlainLink:
    return CudaLink(device) if device.type == "cuda" else PlainLink(device)
