"""What the autoquant cache holds, machine by machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from registry.digest import short
from registry.environment import Hardware, Runtime
from registry.timings import Places, StoredTiming


@dataclass(frozen=True)
class TimingGroup:
    """The timings of one hardware and one runtime. `hardware` and `runtime` are digests;
    `hardware_name` and `runtime_name` what they stand for, where it is known. `outcomes` counts
    them, by kind ("linear", "block") and by outcome."""

    hardware: str
    runtime: str
    hardware_name: str | None
    runtime_name: str | None
    kinds: dict[str, int]
    outcomes: dict[str, int]
    newest: datetime


def timing_groups(found: Iterable[StoredTiming], places: Places) -> tuple[TimingGroup, ...]:
    """In the order of their digests."""
    ordered = sorted(found, key=_place)
    return tuple(
        _group(place, list(members), places) for place, members in groupby(ordered, _place)
    )


def of_hardware(
    found: Iterable[StoredTiming], places: Places, wanted: str
) -> tuple[StoredTiming, ...]:
    """Those whose device's name contains `wanted`, or whose hardware's digest begins with it."""
    names = {digest: _hardware_name(value).lower() for digest, value in places.hardware.items()}
    return tuple(
        item
        for item in found
        if item.timing.key.hardware.startswith(wanted)
        or wanted.lower() in names.get(item.timing.key.hardware, "")
    )


def _place(item: StoredTiming) -> tuple[str, str]:
    return item.timing.key.hardware, item.timing.key.runtime


def _group(place: tuple[str, str], members: list[StoredTiming], places: Places) -> TimingGroup:
    hardware, runtime = place
    device, versions = places.hardware.get(hardware), places.runtimes.get(runtime)
    return TimingGroup(
        hardware=short(hardware),
        runtime=short(runtime),
        hardware_name=None if device is None else _hardware_name(device),
        runtime_name=None if versions is None else _runtime_name(versions),
        kinds=dict(Counter(item.timing.key.kind for item in members)),
        outcomes=dict(Counter(item.timing.outcome for item in members)),
        newest=max(item.timed_at for item in members),
    )


def _hardware_name(hardware: Hardware) -> str:
    return f"{hardware.name} {hardware.mig_profile}" if hardware.mig_profile else hardware.name


def _runtime_name(runtime: Runtime) -> str:
    named = {"torch": runtime.torch, "torchao": runtime.torchao, "driver": runtime.driver}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)
