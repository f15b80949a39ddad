"""A survey as people read it: thousands of candidates in groups, and why others were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from registry.inventory import ModelInventory
from tuner.labels import describe, describe_cache
from tuner.report.tables import table
from tuner.space import Candidate, Dropped, Survey
from tuner.units import format_bytes, format_seconds

GROUP_ROWS = 40
STAGES = {
    "rule": "cannot run, or cannot win",
    "memory": "predicted over the budget",
    "host_memory": "predicted over the host memory",
    "dominated": "predicted far slower than another, and no smaller",
}


@dataclass(frozen=True)
class Group:
    """Candidates whose denoiser runs the same way; they differ in the components around it."""

    denoiser: str
    members: tuple[Candidate, ...]

    @property
    def fastest(self) -> Candidate:
        return min(self.members, key=lambda item: item.estimate.latency_s)

    @property
    def smallest_bytes(self) -> int:
        return min(item.estimate.peak_vram_bytes for item in self.members)


def groups_of(kept: Iterable[Candidate], inventory: ModelInventory) -> tuple[Group, ...]:
    """By the denoiser's part of the label, the group with the fastest member first."""
    found: dict[str, list[Candidate]] = {}
    for item in kept:
        found.setdefault(describe(item.plan, inventory).partition(";")[0], []).append(item)
    groups = [Group(label, tuple(members)) for label, members in found.items()]
    return tuple(sorted(groups, key=lambda group: group.fastest.estimate.latency_s))


def kept_table(survey: Survey, inventory: ModelInventory) -> Table:
    """One row a group: the best that is predicted for it, and how small it can get."""
    groups = groups_of(survey.kept, inventory)
    rows = (
        (
            group.denoiser,
            str(len(group.members)),
            format_seconds(group.fastest.estimate.step_ms / 1000),
            format_seconds(group.fastest.estimate.latency_s),
            format_bytes(group.fastest.estimate.peak_vram_bytes),
            format_bytes(group.smallest_bytes),
        )
        for group in groups[:GROUP_ROWS]
    )
    left_out = max(0, len(groups) - GROUP_ROWS)
    made = table(
        "Denoiser",
        ">Plans",
        ">Step",
        ">Request",
        ">Peak",
        ">Smallest peak",
        title=f"{len(survey.kept)} candidates, predicted",
        rows=rows,
    )
    if left_out:
        made.caption = f"and {left_out} slower groups; --all lists every plan"
    return made


def every_kept_table(survey: Survey, inventory: ModelInventory) -> Table:
    """One row a candidate, the fastest first."""
    rows = (
        (
            describe(item.plan, inventory),
            format_seconds(item.estimate.step_ms / 1000),
            format_seconds(item.estimate.latency_s),
            format_bytes(item.estimate.peak_vram_bytes),
            format_bytes(item.estimate.host_bytes),
        )
        for item in survey.kept
    )
    title = f"{len(survey.kept)} candidates, predicted"
    return table("Plan", ">Step", ">Request", ">Peak", ">Host", title=title, rows=rows)


def step_cache_lines(survey: Survey) -> Iterator[str]:
    """What the best plan may be tried with beside them; a line for each kind."""
    for ladder in survey.step_caches:
        first, last = describe_cache(ladder[0]), describe_cache(ladder[-1])
        yield (
            f"With trained weights the best of them is also tried {first} to {last} "
            f"({len(ladder)} of them), if the policy is not strict."
        )


def dropped_table(dropped: Sequence[Dropped], inventory: ModelInventory) -> Table:
    """One row a reason: how many, and one plan as an example with its own figures."""
    made = table(">Plans", "Dropped because", "For example", title=f"{len(dropped)} dropped")
    for count, why, example in _reasons(dropped):
        made.add_row(str(count), Text(why), Text(describe(example.plan, inventory)))
    return made


def every_dropped_table(dropped: Sequence[Dropped], inventory: ModelInventory) -> Table:
    rows = ((describe(item.plan, inventory), item.reason) for item in dropped)
    return table("Plan", "Dropped because", title=f"{len(dropped)} dropped", rows=rows)


def _reasons(dropped: Sequence[Dropped]) -> Iterator[tuple[int, str, Dropped]]:
    """Rules each on their own, other stages as one; the most frequent first."""
    examples = {_reason(item): item for item in reversed(dropped)}
    for why, count in Counter(map(_reason, dropped)).most_common():
        yield count, why, examples[why]


def _reason(item: Dropped) -> str:
    return f"{item.rule}: {item.reason}" if item.stage == "rule" else STAGES[item.stage]
