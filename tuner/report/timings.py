"""The autoquant cache as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from tuner.report.tables import table
from tuner.timing_groups import TimingGroup


def timings_table(groups: Iterable[TimingGroup]) -> Table:
    columns = ("Device", "Runtime", ">Layers", ">Blocks", "Outcomes", "Newest")
    return table(*columns, rows=map(_row, groups))


def _row(group: TimingGroup) -> tuple[str, ...]:
    return (
        group.hardware_name or group.hardware,
        group.runtime_name or group.runtime,
        str(group.kinds.get("linear", 0)),
        str(group.kinds.get("block", 0)),
        _counts(group.outcomes),
        f"{group.newest:%Y-%m-%d %H:%M}",
    )


def _counts(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
