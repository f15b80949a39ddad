"""What an audit found, as people read it; from the JSON that a study keeps of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tuner.audit import STRATA
from tuner.report.tables import table
from tuner.units import format_bytes, format_seconds

WORDS = {
    "faster": "beats the best that was published",
    "smaller": "no proved plan is as good in memory and time at once",
}


def audit_parts(audit: Mapping[str, Any]) -> Iterator[RenderableType]:
    """How many were dropped for what, how many of them were tried, which were false, and how the
    search's own trials kept what was predicted."""
    strata = audit["strata"]
    tried = sum(item["tried"] for item in strata.values())
    false = len(audit["false_drops"])
    ended = "" if audit["complete"] else ", not all of those asked for"
    yield Text(
        f"Audit: {tried} dropped candidates tried{ended}; {false} of them falsely dropped.",
        "yellow" if false else "",
    )
    rows = (
        (
            STRATA.get(name, name),
            *(str(found[key]) for key in ("dropped", "tried", "fitted", "faster", "smaller")),
        )
        for name, found in strata.items()
    )
    columns = (">Dropped", ">Tried", ">Ran", ">Faster", ">Smaller")
    yield table("Why it was dropped", *columns, rows=rows)
    yield from (_false_drop(item) for item in audit["false_drops"])
    yield Text(_false_tries(audit["false_tries"]))


def _false_drop(item: Mapping[str, Any]) -> Text:
    score, peak = format_seconds(item["score_s"]), format_bytes(item["peak_vram_bytes"])
    why = f"{score}, peak {peak}: {WORDS[item['verdict']]}; dropped because: {item['reason']}"
    return Text(f"✗ {item['label']}: {why}", "yellow")


def _false_tries(found: Mapping[str, int]) -> str:
    return (
        f"Of {found['tried']} plans that the search tried, {found['did_not_fit']} were predicted "
        f"to fit and ran out of memory, {found['did_not_win']} were predicted to beat the best "
        f"and did not, and {found['failed']} failed otherwise."
    )
