"""Removes what was uploaded and never published, for as long as the service runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from registry.errors import RegistryError
from registry.store import Registry

COLLECT_EVERY_S = 3600.0

logger = logging.getLogger(__name__)


@contextmanager
def collecting(
    registry: Registry,
    *,
    every_s: float = COLLECT_EVERY_S,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[None]:
    """Collects at once and then every `every_s`, in a thread; what is under way is waited for at
    the end."""
    ended = threading.Event()

    def collect() -> None:
        while True:
            _collect(registry, now())
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=collect, name="collecting")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _collect(registry: Registry, now: datetime) -> None:
    """A registry that cannot be written now is asked again next time."""
    try:
        collected = registry.collect_garbage(now=now)
    except (RegistryError, OSError) as error:
        logger.warning("nothing was removed of what no record names: %s", error)
        return
    if collected.files:
        logger.info("%d files that no record names removed", len(collected.files))
