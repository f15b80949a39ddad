"""A machine as people read it: the output of `tuner doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from registry.environment import Hardware, Runtime
from tuner.report.tables import facts, table
from tuner.units import format_bytes

if TYPE_CHECKING:
    from tuner.capabilities import Capability, Missing


def hardware_facts(hardware: Hardware, foreign_bytes: int) -> Table:
    if hardware.device == "cpu":
        return facts({"Device": f"processor: {hardware.name}", **_host(hardware)})
    major, minor = hardware.compute_capability or (0, 0)
    mig = f", MIG {hardware.mig_profile}" if hardware.mig_profile else ""
    in_use = f", {format_bytes(foreign_bytes)} in use by others" if foreign_bytes else ""
    return facts(
        {
            "Device": f"{hardware.name}, sm {major}.{minor}{mig}",
            "Memory": f"{format_bytes(hardware.vram_bytes)}{in_use}",
            "Host link": hardware.link_bandwidth_class,
            "Power limit": f"{hardware.power_limit_w} W" if hardware.power_limit_w else "unknown",
            "Processor": hardware.cpu_model,
            **_host(hardware),
        }
    )


def _host(hardware: Hardware) -> dict[str, str]:
    memory = format_bytes(hardware.host_ram_bytes)
    return {"Host": f"{hardware.cpu_cores} cores, {memory} of memory"}


def runtime_facts(runtime: Runtime) -> Table:
    """Versions that are there; what is not is left to the findings."""
    versions = runtime.model_dump(exclude={"attention_packages", "apply_engine"})
    named = {name.replace("_", " "): str(value) for name, value in versions.items() if value}
    return facts({**named, **dict(runtime.attention_packages)})


def place_facts(registry: str, cache_dir: str) -> Table:
    return facts({"Registry": registry, "Cache": cache_dir})


def capabilities_table(found: Iterable[Capability]) -> Table:
    rows = (("✓" if item.available else "✗", item.name, item.reason) for item in found)
    return table("", "Can run", "Why", rows=rows)


def findings(
    problems: Iterable[str], notes: Iterable[str], absent: Iterable[Missing]
) -> Iterator[Text]:
    """What to mend, one line each; a single good line when there is nothing."""
    lines = [
        *(Text(f"✗ {problem}", style="red") for problem in problems),
        *(_missing_line(item) for item in absent),
        *(Text(f"note: {note}") for note in notes),
    ]
    yield from lines or [Text("✓ ready: `tuner run` can work here", style="green")]


def _missing_line(item: Missing) -> Text:
    mark, style = ("✗", "red") if item.required else ("–", "yellow")
    return Text(f"{mark} {item.package} is missing: {item.reason}. {item.command}", style=style)
