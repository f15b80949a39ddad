"""The registry's timings as one study on one machine sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from registry.environment import Environment
from registry.store import Registry
from registry.timing import Timing, TimingKey


class RegistryTimings:
    """Those of every study before this one, of any model; what this one times is kept for all."""

    def __init__(
        self, registry: Registry, environment: Environment, now: Callable[[], datetime]
    ) -> None:
        self._registry, self._environment, self._now = registry, environment, now

    def known(self, keys: Iterable[TimingKey]) -> Mapping[TimingKey, Timing]:
        return {key: item.timing for key, item in self._registry.timings(keys).items()}

    def keep(self, timings: Sequence[Timing]) -> None:
        self._registry.put_timings(timings, now=self._now(), environment=self._environment)
