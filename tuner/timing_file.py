"""Timings as a file: one JSON object that a person can read and another registry can take.

`hardware` and `runtime` say what the digests in the keys stand for, where it is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from registry.base import Frozen, FrozenMapping
from registry.environment import Hardware, Runtime
from registry.errors import InvalidInput
from registry.timings import Places, StoredTiming
from tuner.version import __version__

TIMING_FORMAT: Final = 1
"""Written into every file. A reader refuses a higher number."""

CLOCK_TOLERANCE = timedelta(days=1)
"""Newer timings replace older ones, so one of the far future would stay for ever."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ERRORS_SHOWN = 3


class TimingFile(Frozen):
    """`producer` maps the programs that wrote the file to their versions."""

    format: Literal[1]
    producer: FrozenMapping[str]
    hardware: FrozenMapping[Hardware] = Field(default={}, validate_default=True)
    runtime: FrozenMapping[Runtime] = Field(default={}, validate_default=True)
    timings: tuple[StoredTiming, ...]

    @property
    def places(self) -> tuple[Hardware | Runtime, ...]:
        return (*self.hardware.values(), *self.runtime.values())


def timing_file(found: Iterable[StoredTiming], places: Places) -> TimingFile:
    """With the places that the timings name, and no others."""
    timings = tuple(found)
    hardware = {item.timing.key.hardware for item in timings}
    runtimes = {item.timing.key.runtime for item in timings}
    return TimingFile(
        format=TIMING_FORMAT,
        producer={"tuner": __version__},
        hardware={name: value for name, value in places.hardware.items() if name in hardware},
        runtime={name: value for name, value in places.runtimes.items() if name in runtimes},
        timings=timings,
    )


def dump_timings(file: TimingFile) -> str:
    return json.dumps(file.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def parse_timings(data: bytes, now: datetime) -> TimingFile:
    """Every entry is checked. Raises InvalidInput naming the first bad ones."""
    _refuse_higher(data)
    try:
        file = TimingFile.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInput(f"not a file of timings: {_told(error)}") from None
    problems = [*_place_problems(file), *_entry_problems(file, now)]
    if problems:
        raise InvalidInput(f"not a file of timings: {_first(problems)}")
    return file


def _refuse_higher(data: bytes) -> None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not a file of timings: not JSON ({error})") from None
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number > TIMING_FORMAT:
        raise InvalidInput(
            f"the timings are of format {number}; this release reads {TIMING_FORMAT}",
            hint="Upgrade this installation.",
        )


def _place_problems(file: TimingFile) -> Iterable[str]:
    for part, found in (("hardware", file.hardware), ("runtime", file.runtime)):
        for name, place in dict[str, Any](found).items():
            if place.digest != name:
                yield f"{part}[{name!r}]: has the digest {place.digest}"


def _entry_problems(file: TimingFile, now: datetime) -> Iterable[str]:
    for number, item in enumerate(file.timings):
        key = item.timing.key
        for part, value in (("hardware", key.hardware), ("runtime", key.runtime)):
            if not _DIGEST.fullmatch(value):
                yield f"timings[{number}].timing.key.{part}: {value!r} is not 64 hex digits"
        if item.timed_at > now + CLOCK_TOLERANCE:
            yield f"timings[{number}].timed_at: {item.timed_at.isoformat()} is in the future"


def _told(error: ValidationError) -> str:
    return _first([f"{_where(item['loc'])}: {item['msg']}" for item in error.errors()])


def _where(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).lstrip(".") or "file"


def _first(problems: list[str]) -> str:
    shown = "; ".join(problems[:_ERRORS_SHOWN])
    more = len(problems) - _ERRORS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
