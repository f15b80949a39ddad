"""Why nothing fits, in words, and what would."""

from __future__ import annotations

from tuner.units import format_bytes


def shortage(
    model: str,
    budget_bytes: int,
    host_budget_bytes: int | None,
    smallest_vram_bytes: int | None,
    smallest_host_bytes: int | None,
) -> str:
    """One sentence. The smallest needs are those of `tuner.candidate.Offer`; a host budget of None
    is all of the machine's memory."""
    if smallest_vram_bytes is None:
        return f"no plan for {model} can run on this machine at all"
    if smallest_host_bytes is None:
        return (
            f"no plan for {model} fits in {format_bytes(budget_bytes)}; the smallest that would "
            f"needs about {format_bytes(smallest_vram_bytes)}"
        )
    given = "this machine's" if host_budget_bytes is None else format_bytes(host_budget_bytes)
    return (
        f"no plan for {model} that fits in {format_bytes(budget_bytes)} also fits in {given} host "
        f"memory; the smallest needs about {format_bytes(smallest_host_bytes)} of it"
    )
