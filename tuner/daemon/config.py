"""The daemon's part of `config.toml`: a schema, its defaults, and what is wrong with a file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo

from registry.base import Frozen
from registry.errors import InvalidInput
from tuner.units import exact_bytes, parse_bytes, parse_duration_s

CONFIG_FILE = "config.toml"
DAY_S = 86_400.0
FROM_FILE = {"source": "file"}
"""The context of validation in which numbers need their unit."""
_DAYS = re.compile(r"(\d{1,5}) ?d")
_HOURS = re.compile(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})")


def _seconds(value: Any, info: ValidationInfo) -> Any:
    return _parsed(parse_duration_s, value, "a duration such as '10m'", info)


def _bytes(value: Any, info: ValidationInfo) -> Any:
    return _parsed(parse_bytes, value, "an amount of memory such as '1GiB'", info)


def _parsed(parse: Any, value: Any, what: str, info: ValidationInfo) -> Any:
    """A bare number in a file would leave its unit to be guessed."""
    if isinstance(value, float) and info.context is not FROM_FILE:
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not {what}")  # noqa: TRY004 - pydantic reports this one
    try:
        return parse(value)
    except InvalidInput as error:
        raise ValueError(error.message) from None


def _days(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and (match := _DAYS.fullmatch(value)):
        return float(match[1]) * DAY_S
    return _seconds(value, info)


Days = Annotated[float, BeforeValidator(_days), Field(gt=0)]
"""Also in days: "90d"."""
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Bytes = Annotated[float, BeforeValidator(_bytes), Field(gt=0)]


class Hours(Frozen):
    """A part of the day, local time; over midnight where it ends before it begins."""

    begin: time
    end: time

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"

    @classmethod
    def parse(cls, value: Any) -> Any:
        match = _HOURS.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is not a part of the day such as '22:00-07:00'")
        begin, end = (time.fromisoformat(part.zfill(5)) for part in match.groups())
        return cls(begin=begin, end=end)

    def holds(self, moment: datetime) -> bool:
        """`moment` in local time."""
        now = moment.time()
        if self.begin <= self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end


PartOfDay = Annotated[Hours, BeforeValidator(Hours.parse)]


class IdleConfig(Frozen):
    """When a GPU counts as idle: for `window` no more memory and load than this."""

    window: Seconds = 60.0
    memory: Bytes = float(2**30)
    utilization_percent: int = Field(default=10, ge=0, le=100)


class DaemonConfig(Frozen):
    """`[daemon]`. `lease` is how long a job stays with a daemon that went silent; `drift` is how
    often the machine is held against its records; `quiet_hours`, where given, are the only ones in
    which it tunes; `interpreters` are apps' whose environments are watched beside the daemon's
    own; `nice` is the priority its jobs run at; `port`, where given, that of loopback on which it
    tells how it is (0: a free one)."""

    lease: Seconds = 120.0
    heartbeat: Seconds = 20.0
    step: Seconds = 1.0
    drift: Seconds = 600.0
    port: int | None = Field(default=None, ge=0, le=65535)
    nice: int = Field(default=10, ge=0, le=19)
    quiet_hours: tuple[PartOfDay, ...] = ()
    interpreters: tuple[str, ...] = ()
    idle: IdleConfig = IdleConfig()


class RetentionConfig(Frozen):
    """`[retention]`: what the daemon removes. Logs of jobs that ended, oldest first, when they are
    older than `logs_age` or all together larger than `logs`; artifacts that no record and no trial
    names, after `garbage_age`; artifacts of records beyond `artifacts`, and trials with their logs
    beyond `trials`, but never those of plans that are needed (`registry.quotas`). Unused is a plan
    that nobody fetched for `unused_age`."""

    logs: Bytes = float(10**9)
    logs_age: Days = 90.0 * DAY_S
    garbage_age: Days = 7.0 * DAY_S
    artifacts: Bytes = 50.0 * 10**9
    trials: Bytes = 5.0 * 10**9
    unused_age: Days = 90.0 * DAY_S
    every: Seconds = 6 * 3600.0


class Config(Frozen):
    """The whole file."""

    daemon: DaemonConfig = DaemonConfig()
    retention: RetentionConfig = RetentionConfig()


def load_config(path: Path, *, must_exist: bool = False) -> Config:
    """The defaults where there is no file, unless it `must_exist`. Raises InvalidInput naming the
    file and each wrong key with what is accepted."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not must_exist:
            return Config()
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    try:
        config = Config.model_validate(data, context=FROM_FILE)
    except ValidationError as error:
        raise InvalidInput(
            f"{path}: " + "; ".join(_problems(error)),
            hint="`tuner config show` lists every key with its value.",
        ) from None
    if config.daemon.heartbeat * 2 > config.daemon.lease:
        raise InvalidInput(
            f"{path}: daemon.heartbeat must be at most half of daemon.lease, or a late heartbeat "
            "loses the job"
        )
    return config


def _problems(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_url=False)
    ]


def as_toml(config: Config) -> str:
    """Every key with the value in force, in a form that `load_config` reads back as the same."""
    lines = []
    for name, section in (
        ("daemon", config.daemon),
        ("daemon.idle", config.daemon.idle),
        ("retention", config.retention),
    ):
        lines.append(f"[{name}]")
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if value is None:
                lines.append(f"# {key} =")
            elif not isinstance(value, Frozen):
                lines.append(f"{key} = {_shown(value, field.metadata)}")
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any, metadata: Sequence[Any]) -> str:
    readers = [item.func for item in metadata if isinstance(item, BeforeValidator)]
    if _bytes in readers:
        return f'"{exact_bytes(int(value))}"'
    if isinstance(value, float):
        return f'"{_duration(value)}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(json.dumps(str(item), ensure_ascii=False) for item in value) + "]"
    return json.dumps(value)


def _duration(seconds: float) -> str:
    for unit, factor in (("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds % factor == 0:
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"
