"""Everything that a study dropped unmeasured and that an audit may safely try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from registry.record import Trial
from tuner.audit import Stratum, Suspect
from tuner.planning import Planning
from tuner.search import Search
from tuner.space import Dropped, Stage

BY_ESTIMATE: Mapping[Stage, Stratum] = {
    "memory": "memory",
    "host_memory": "host_memory",
    "dominated": "dominated",
}


def suspects(planning: Planning, search: Search, baseline: Trial) -> Iterator[Suspect]:
    """What the survey dropped, as the baseline had corrected it, then what the search did.

    Left out is what rules call impossible (it fails, or is not what it says), what had no time
    only, and what is predicted to fill the host's memory where no budget would stop it.
    """
    corrections, rules = planning.taught_by(baseline), planning.rules
    for item in planning.survey(corrections).dropped:
        if item.stage == "rule":
            if {broken.kind for broken in rules.violations(item.plan)} == {"useless"}:
                estimate = planning.candidate(item.plan, corrections).estimate
                yield Suspect(item.plan, estimate, "useless", item.reason)
        elif item.estimate is not None and _is_safe(item, planning):
            yield Suspect(item.plan, item.estimate, BY_ESTIMATE[item.stage], item.reason)
    for idle in search.untried():
        if idle.kind != "no_time":
            yield Suspect(idle.plan, idle.estimate, idle.kind, idle.reason)


def _is_safe(item: Dropped, planning: Planning) -> bool:
    return item.stage != "host_memory" or planning.caps_host
