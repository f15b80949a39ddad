"""How a published record fits a question: what is equal, and what is not, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.environment import Environment, Hardware, Runtime
from registry.record import MatchKind, Objective, Policy, TuningRecord
from registry.workload import ModelRef, Workload
from tuner.gate import satisfies
from tuner.policies import CACHING

MATCH_ORDER: tuple[MatchKind, ...] = ("exact", "architecture", "resolution", "stale", "estimated")
"""From the most to the least that is known. A record that differs in several ways is the last."""

CUDA_FIELDS = (
    "device",
    "name",
    "compute_capability",
    "vram_bytes",
    "multiprocessors",
    "mig_profile",
)
CPU_FIELDS = ("device", "cpu_model", "cpu_cores")
"""What makes two devices one kind. The rest of `Hardware` (host memory, power limit, link) changes
figures, not the device: a record that differs there is stale."""


@dataclass(frozen=True)
class Request:
    """What an app asks of the registry.

    `architecture` and `weights` are the inventory's digests where they are known (`weights` only if
    counted from the very weights). Without them a catalog or hub model is known by its name and
    revision; a local folder is not. `weights_source` says, for people, which commit in the hub's
    cache `weights` are of, `asked_as` what the user called the model. `host_budget_bytes` None: no
    limit. `strict`: exact or nothing.
    """

    model: ModelRef
    workload: Workload
    budget_bytes: int
    host_budget_bytes: int | None = None
    policy: Policy = "balanced"
    objective: Objective = "latency"
    strict: bool = False
    architecture: str | None = None
    weights: str | None = None
    weights_source: str | None = None
    asked_as: str | None = None


@dataclass(frozen=True)
class Match:
    """`mismatches` says every way in which the record differs, in words."""

    kind: MatchKind
    mismatches: tuple[str, ...]


def match(request: Request, environment: Environment, record: TuningRecord) -> Match | None:
    """How a record fits; None for another architecture or device, which prove nothing."""
    if not same_architecture(request, record):
        return None
    if not same_device(environment.hardware, record.environment.hardware):
        return None
    found = list(_differences(request, environment, record))
    exact: MatchKind = "exact"
    kind = max([exact, *(kind for kind, _ in found)], key=MATCH_ORDER.index)
    return Match(kind, tuple(text for _, text in found))


def same_architecture(request: Request, record: TuningRecord) -> bool:
    """By digest; by the model's public name where the digest is unknown or has another source."""
    if request.architecture == record.key.architecture:
        return True
    return _same_name(request.model, record.model)


def same_device(own: Hardware, other: Hardware) -> bool:
    """Whether two devices are of one kind."""
    fields = CUDA_FIELDS if own.device == "cuda" else CPU_FIELDS
    return all(getattr(own, name) == getattr(other, name) for name in fields)


def device_kind(hardware: Hardware) -> str:
    """A name for any device like this one, as the selector of a job: a GPU's with its MIG profile,
    a processor's model."""
    mig = f" MIG {hardware.mig_profile}" if hardware.mig_profile else ""
    return f"{hardware.name}{mig}"


def satisfies_policy(record: TuningRecord, policy: Policy) -> bool:
    """Whether the record's evidence meets the policy, and what it does is admitted by it. The
    reference itself meets every one."""
    if record.plan == record.baseline_plan:
        return True
    admitted = record.plan.pipeline.step_cache is None or policy in CACHING
    return admitted and satisfies(record.quality, policy)


def covers(record: TuningRecord, workload: Workload) -> bool:
    """Whether every shape asked for was measured."""
    return all(record.workload.find(shape) is not None for shape in workload.shapes)


def _differences(
    request: Request, environment: Environment, record: TuningRecord
) -> Iterator[tuple[MatchKind, str]]:
    if not _same_weights(request, record):
        here = f", not {request.weights_source}" if request.weights_source else ""
        text = f"weights: proved with {_name(record.model)}{here}; the picture is unproved"
        yield "architecture", text
    if not covers(record, request.workload):
        label = request.workload.label
        yield "resolution", f"shapes: proved at {record.workload.label}, not {label}"
    for text in environment_changes(environment, record.environment):
        yield "stale", text


def environment_changes(own: Environment, other: Environment) -> tuple[str, ...]:
    """In words what differs here (`own`) from where something was proved: nothing for an exact
    answer."""
    return tuple(
        f"{name}: {ours} here, {theirs} when proved"
        for name, ours, theirs in environment_differences(own, other)
    )


def environment_differences(
    own: Environment, other: Environment
) -> tuple[tuple[str, str, str], ...]:
    """What differs that matters: its name, what it is in `own`, and in `other`."""
    hardware = _hardware(own.hardware, other.hardware)
    return (*hardware, *_runtime(own.runtime, other.runtime))


def _same_weights(request: Request, record: TuningRecord) -> bool:
    asked = request.model
    if asked.weights != record.model.weights:
        return False
    if request.weights is not None:
        return request.weights == record.key.weights
    return _same_name(asked, record.model) and asked.revision == record.model.revision


def _same_name(asked: ModelRef, record: ModelRef) -> bool:
    """A local folder's name says nothing about what is in it."""
    same = (asked.name, asked.source) == (record.name, record.source)
    return same and asked.source != "local"


def _hardware(own: Hardware, other: Hardware) -> Iterator[tuple[str, str, str]]:
    skipped = {"vram_bytes"} if own.device == "cpu" else set()
    yield from _changed(own.model_dump(), other.model_dump(), skipped)


def _runtime(own: Runtime, other: Runtime) -> Iterator[tuple[str, str, str]]:
    ours, theirs = own.model_dump(), other.model_dump()
    packages, former = ours.pop("attention_packages"), theirs.pop("attention_packages")
    yield from _changed(ours, theirs, set())
    yield from _changed(packages, former, set())


def _changed(
    own: Mapping[str, Any], other: Mapping[str, Any], skipped: set[str]
) -> Iterator[tuple[str, str, str]]:
    for name in sorted({*own, *other} - skipped):
        if own.get(name) != other.get(name):
            yield name, _word(own.get(name)), _word(other.get(name))


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _name(model: ModelRef) -> str:
    revision = f"@{model.revision}" if model.revision else ""
    return f"{model.name}{revision} ({model.weights} weights)"
