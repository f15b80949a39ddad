"""The autoquant cache: what is known of each layer's or block's time, and where it was taken.

One row a key. A measured time replaces whatever is there, and of two measured ones the newer stays;
anything else replaces only what is not measured. Timings are never collected as garbage: a driver
that was rolled back finds its own again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime
from sqlalchemy import Connection, Select, select

from registry.base import Frozen
from registry.digest import short
from registry.environment import Environment, Hardware, Runtime
from registry.errors import InvalidInput
from registry.rows import (
    AnyRow,
    check_columns,
    corrupt,
    from_time,
    parsed,
    put_row,
    readable,
    sealed,
    to_time,
)
from registry.schema import TIMING_PLACES, TIMINGS
from registry.timing import Timing, TimingKey

KEYS_A_QUERY = 500

Change = Literal["new", "better", "same"]
_PARTS: dict[str, type[Hardware | Runtime]] = {"hardware": Hardware, "runtime": Runtime}


class StoredTiming(Frozen):
    """A timing and when it was taken."""

    timing: Timing
    timed_at: AwareDatetime


@dataclass(frozen=True)
class Kept:
    """What came of timings that were put: `new` keys, `better` ones that replaced what was there,
    and those whose key had one as good already (`same`)."""

    new: int = 0
    better: int = 0
    same: int = 0


@dataclass(frozen=True)
class Places:
    """What digests of hardware and runtimes stand for, where somebody said so."""

    hardware: Mapping[str, Hardware]
    runtimes: Mapping[str, Runtime]


def stored_now(
    timings: Iterable[Timing], environment: Environment | None, now: datetime
) -> list[StoredTiming]:
    """Raises InvalidInput for a timing that was not taken in `environment`."""
    found = [StoredTiming(timing=timing, timed_at=now) for timing in timings]
    if environment is not None:
        for item in found:
            _check_place(item.timing.key, environment)
    return found


def _check_place(key: TimingKey, environment: Environment) -> None:
    if (key.hardware, key.runtime) != (environment.hardware.digest, environment.runtime.digest):
        raise InvalidInput(f"timing {short(key.digest)} was not taken on this machine")


def put(
    connection: Connection,
    found: Sequence[StoredTiming],
    places: Iterable[Hardware | Runtime] = (),
) -> Kept:
    """Keep what is better than what is there; of one key given twice, the better and later."""
    counts = {"new": 0, "better": 0, "same": 0}
    known = _known(connection, [item.timing.key for item in found])
    for item in found:
        key = item.timing.key.digest
        change = _change(item, known.get(key))
        counts[change] += 1
        if change != "same":
            known[key] = item
            _write(connection, item)
    for place in places:
        _write_place(connection, place)
    return Kept(**counts)


def _change(item: StoredTiming, before: StoredTiming | None) -> Change:
    if before is None:
        return "new"
    if item.timing == before.timing:
        return "same"
    measured, was = item.timing.outcome == "measured", before.timing.outcome == "measured"
    if measured != was:
        return "better" if measured else "same"
    return "better" if item.timed_at >= before.timed_at else "same"


def _known(connection: Connection, keys: Iterable[TimingKey]) -> dict[str, StoredTiming]:
    """What is there and whole: a damaged row counts as none, so that a new timing heals it."""
    return {item.timing.key.digest: item for item in get(connection, keys)}


def _write(connection: Connection, item: StoredTiming) -> None:
    put_row(connection, TIMINGS.c.key_digest, {**_columns(item), **sealed(item)})


def _write_place(connection: Connection, place: Hardware | Runtime) -> None:
    part = "hardware" if isinstance(place, Hardware) else "runtime"
    put_row(connection, TIMING_PLACES.c.sha256, {"part": part, **sealed(place)})


def get(connection: Connection, keys: Iterable[TimingKey]) -> Iterator[StoredTiming]:
    """Those of `keys` that are there; a damaged one is left out with a warning."""
    digests = sorted({key.digest for key in keys})
    for first in range(0, len(digests), KEYS_A_QUERY):
        wanted = TIMINGS.c.key_digest.in_(digests[first : first + KEYS_A_QUERY])
        yield from readable(connection.execute(select(TIMINGS).where(wanted)), stored_timing)


def query(hardware: str | None, runtime: str | None) -> Select[Any]:
    """In an order that does not change: by place, then by key."""
    found = select(TIMINGS).order_by(
        TIMINGS.c.hardware_digest, TIMINGS.c.runtime_digest, TIMINGS.c.key_digest
    )
    if hardware is not None:
        found = found.where(TIMINGS.c.hardware_digest == hardware)
    if runtime is not None:
        found = found.where(TIMINGS.c.runtime_digest == runtime)
    return found


def places(connection: Connection) -> Places:
    """Damaged ones, and those another release wrote, are left out."""
    found = readable(connection.execute(select(TIMING_PLACES)), place)
    return Places(
        hardware={item.digest: item for item in found if isinstance(item, Hardware)},
        runtimes={item.digest: item for item in found if isinstance(item, Runtime)},
    )


def stored_timing(row: AnyRow) -> StoredTiming:
    """Raises RegistryCorrupt naming the timing, RegistryTooNew."""
    what = f"timing {row.key_digest}"
    from_time(row.timed_at, what)
    item = parsed(StoredTiming, row, what)
    check_columns(row, _columns(item), what)
    return item


def place(row: AnyRow) -> Hardware | Runtime:
    """Raises RegistryCorrupt naming the place, RegistryTooNew."""
    what = f"place {row.sha256} of timings"
    model = _PARTS.get(row.part)
    if model is None:
        raise corrupt(what, f"{row.part!r} is neither hardware nor runtime")
    return parsed(model, row, what)


def _columns(item: StoredTiming) -> dict[str, Any]:
    key = item.timing.key
    return {
        "key_digest": key.digest,
        "hardware_digest": key.hardware,
        "runtime_digest": key.runtime,
        "outcome": item.timing.outcome,
        "timed_at": to_time(item.timed_at),
    }
