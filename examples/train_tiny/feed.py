"""Scene batches made ahead of their use by worker processes, in an order that a seed decides."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Self

from examples.train_tiny.layout import SceneBatch, training_batch
from examples.train_tiny.scenes import Domain

AHEAD = 3
"""Batches asked for in advance, for each worker."""


class Feed:
    """A context that gives training batches; without workers they are made when asked for."""

    def __init__(self, domain: Domain, seed: int, workers: int) -> None:
        self._domain, self._seed, self._workers = domain, seed, workers
        self._open = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._workers:
            # Spawned: a fork would copy the CUDA context, which cannot be used there.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=spawn)
            self._open.callback(self._pool.shutdown, cancel_futures=True)
        return self

    def __exit__(self, *ending: object) -> None:
        self._open.close()

    def batches(self, name: int, size: int, *, with_held_out: bool = False) -> Iterator[SceneBatch]:
        """An endless series of batches of `size` scenes; another one for every `name`."""
        make = partial(
            training_batch,
            self._domain,
            self._seed * 1000 + name,
            size=size,
            with_held_out=with_held_out,
        )
        if self._pool is None:
            yield from (make(index) for index in count())
            return
        waiting: deque[Future[SceneBatch]] = deque()
        for index in count():
            waiting.append(self._pool.submit(make, index))
            if len(waiting) > AHEAD * self._workers:
                yield waiting.popleft().result()
