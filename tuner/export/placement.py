"""Where each component of a script's pipeline lives, and how it reaches the device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from registry.errors import InvalidPlan
from registry.inventory import ModelInventory
from registry.plan import GroupOffload, Placement, Plan, StreamedBlocks
from tuner.export.source import Part, call, component, enclosed, literal, module_of, source_of

WHOLE = {
    "model_offload": "enable_model_cpu_offload",
    "sequential_offload": "enable_sequential_cpu_offload",
}
"""Placements that diffusers applies to every component of a pipeline at once."""

STREAMING = (
    "spread.py",
    *(f"pipeline/streaming/{name}.py" for name in ("layout", "host", "link", "packing", "lane")),
    "pipeline/streaming/engine.py",
)
"""The modules of streamed blocks, each after those that it needs."""

KEEP_RESIDENT = '''\
def keep_resident(pipe, *names):
    """Leave components out of the offloading of a whole pipeline."""
    pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, *names]
    order = (pipe.model_cpu_offload_seq or "").split("->")
    pipe.model_cpu_offload_seq = "->".join(name for name in order if name not in names)'''


def placement(plan: Plan, inventory: ModelInventory | None) -> Part:
    """Raises InvalidPlan for a part of a pipeline offloaded by a method for all of it."""
    placements = {name: item.placement for name, item in plan.pipeline.components.items()}
    for kind in WHOLE:
        if any(item.kind == kind for item in placements.values()):
            return _whole(kind, placements, inventory)
    on_host = {name: item for name, item in placements.items() if item.kind != "resident"}
    if not on_host:
        return Part(("pipe.to(DEVICE)",))
    return _joined(*(_one(name, item) for name, item in on_host.items()), _resident(on_host))


def _whole(
    kind: str, placements: Mapping[str, Placement], inventory: ModelInventory | None
) -> Part:
    others = sorted(name for name, item in placements.items() if item.kind != kind)
    if others:
        raise InvalidPlan(
            f"{kind} is for all components of a pipeline; placed otherwise: {', '.join(others)}"
        )
    every = inventory.components if inventory is not None else ()
    unnamed = [literal(item.name) for item in every if item.name not in placements]
    whole = f"pipe.{WHOLE[kind]}(device=DEVICE)"
    if not unnamed:
        return Part((whole,))
    return Part((call("keep_resident", "pipe", *unnamed), whole), definitions=(KEEP_RESIDENT,))


def _resident(on_host: Mapping[str, Placement]) -> Part:
    names = [literal(name) for name in on_host]
    condition = f"name != {names[0]}" if len(names) == 1 else "name not in on_host"
    lines = (
        *([enclosed("on_host = {", names, "}")] if len(names) > 1 else []),
        "for name, component in pipe.components.items():",
        f"    if isinstance(component, nn.Module) and {condition}:",
        "        component.to(DEVICE)",
    )
    return Part(lines, imports=(("torch", "nn"),))


def _one(name: str, chosen: Placement) -> Part:
    if isinstance(chosen, GroupOffload):
        return _group_offload(name, chosen)
    if isinstance(chosen, StreamedBlocks):
        return _streamed(name, chosen)
    text = (files("tuner") / "pipeline" / "release.py").read_text(encoding="utf-8")
    hook = source_of(text, "ReleaseAfterUse")
    line = f"add_hook_to_module({component(name)}, ReleaseAfterUse(DEVICE))"
    return Part((line,), imports=hook.imports, definitions=hook.definitions)


def _streamed(name: str, chosen: StreamedBlocks) -> Part:
    texts = (files("tuner").joinpath(path).read_text(encoding="utf-8") for path in STREAMING)
    source = _joined(*map(module_of, texts))
    keywords = {
        "resident_blocks": literal(chosen.resident_blocks),
        "slots": literal(chosen.slots),
    }
    line = call("stream_blocks", component(name), "torch.device(DEVICE)", **keywords)
    return Part((line,), imports=source.imports, definitions=source.definitions)


def _group_offload(name: str, chosen: GroupOffload) -> Part:
    keywords = {"onload_device": "DEVICE", "offload_type": literal(f"{chosen.granularity}_level")}
    if chosen.granularity == "block":
        keywords["num_blocks_per_group"] = literal(chosen.blocks_per_group)
    if chosen.stream:
        keywords |= dict.fromkeys(("non_blocking", "use_stream", "record_stream"), "True")
    imports = (("diffusers.hooks.group_offloading", "apply_group_offloading"),)
    return Part((call("apply_group_offloading", component(name), **keywords),), imports=imports)


def _joined(*parts: Part) -> Part:
    return Part(
        lines=tuple(line for part in parts for line in part.lines),
        imports=tuple(item for part in parts for item in part.imports),
        definitions=tuple(item for part in parts for item in part.definitions),
    )
