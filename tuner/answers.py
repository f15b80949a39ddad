"""The one way from a question to a plan, for `tuner.get_plan` and `tuner get-plan` alike.

Nothing here imports torch, and nothing is made on disk: a machine without a registry still gets an
estimated plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, get_args

from registry.client import open_registry
from registry.digest import digest, short
from registry.environment import Environment
from registry.errors import InvalidInput, NoPlan, RegistryMissing, UntrustedArtifact
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.record import ArtifactRef, MatchKind, Measurement, Objective, Policy
from registry.records import StoredRecord
from registry.store import Registry
from registry.workload import Weights, Workload
from tuner.config import Settings, load_settings
from tuner.detect import Detection, detect
from tuner.experience import Experience
from tuner.foresight import Foresight
from tuner.hub_cache import CachedWeights, cached_weights
from tuner.inventories import known_inventory, known_weights
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.resolve import Answer, Request, resolve
from tuner.shapes import require_factor, workload_of
from tuner.units import parse_bytes

if TYPE_CHECKING:
    from registry.signing import SigningKeys


class PlanOptions(TypedDict, total=False):
    """What may be said beside model, budget and size.

    `registry` is a path or URL (default: TUNER_REGISTRY, else the user's own); `gpu` as in `--gpu`;
    `host_memory` a size such as "32GB", or bytes. `strict` refuses everything but an exact match.
    `enqueue_on_miss` makes a tuning job of a question that nothing proved here answers; None: where
    a daemon serves the device.
    """

    registry: str | Path | None
    gpu: str | int | None
    host_memory: str | int | None
    weights: Weights
    revision: str | None
    policy: Policy
    objective: Objective
    strict: bool
    enqueue_on_miss: bool | None


WORDS: Mapping[str, tuple[str, ...]] = {
    "policy": get_args(Policy),
    "objective": get_args(Objective),
    "weights": get_args(Weights),
}
"""Options that are one of a few words."""


@dataclass(frozen=True)
class PlanAnswer:
    """A plan, how it was found, and what is needed to use it here.

    `answer` has the details: mismatches, notes, estimate. `inventory` is None where the model was
    never counted, `registry` where there is none.
    """

    model: ModelSpec
    workload: Workload
    detection: Detection
    answer: Answer
    inventory: ModelInventory | None
    registry: Registry | None
    settings: Settings

    @property
    def environment(self) -> Environment:
        return self.detection.environment

    @property
    def match(self) -> MatchKind:
        return self.answer.match

    @property
    def plan(self) -> Plan:
        return self.answer.plan

    @property
    def measurement(self) -> Measurement | None:
        return self.answer.measurement

    @property
    def stored(self) -> StoredRecord | None:
        """The record the plan comes from; None for an estimated plan."""
        return self.answer.record

    @property
    def record_id(self) -> str | None:
        return None if self.stored is None else self.stored.record.id

    @property
    def notes(self) -> tuple[str, ...]:
        return self.answer.notes

    @property
    def artifacts_apply(self) -> bool:
        return self.answer.artifacts_apply

    def script(self) -> str:
        """A diffusers script that does by hand what the plan says. Raises InvalidPlan where none
        can follow it."""
        from tuner.export import diffusers_script

        measured = self.measurement
        return diffusers_script(
            self.plan,
            model=self.model,
            pipeline_class=self._pipeline_class(),
            inventory=self.inventory,
            shape=self.workload.shapes[0],
            steps=None if measured is None else measured.shapes[0].steps,
            device=self.environment.hardware.device,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return self.answer.to_json()

    def trusted_bytes(self, artifact: ArtifactRef) -> bytes:
        """One of the record's artifacts: the very bytes whose signature was verified.

        Raises UntrustedArtifact and RegistryError.
        """
        if self.registry is None or self.stored is None:
            raise UntrustedArtifact("an estimated plan has no artifacts")
        return self.registry.trusted_artifact(self.stored, artifact, self._keys())

    @property
    def code_folder(self) -> Path:
        """Where compiled code is unpacked. Another one for other trusted keys: what a key signed is
        not run from it any more once that key was revoked."""
        trusted = sorted(key.key_id for key in self._keys().trusted())
        return self.settings.compiled_code_dir / short(digest(trusted))

    def note_fetch(self) -> None:
        """Count the answer, best effort."""
        if self.registry is not None and self.record_id is not None:
            self.registry.note_fetch(self.record_id, datetime.now(UTC))

    def _pipeline_class(self) -> str:
        """A plan comes from a record or from an inventory; both name it."""
        if self.stored is not None:
            return self.stored.record.pipeline_class
        if self.inventory is None:
            raise NoPlan("nothing is known of the model's pipeline")
        return self.inventory.pipeline_class

    def _keys(self) -> SigningKeys:
        from registry.signing import SigningKeys

        return SigningKeys(self.settings.config_dir)


def get_plan(
    model: str,
    *,
    vram: str | int,
    height: int,
    width: int,
    batch_size: int = 1,
    **options: Unpack[PlanOptions],
) -> PlanAnswer:
    """The best plan known for this machine: proved within the budget if any is, else estimated.

    `vram` is a size such as "24GB", or bytes. Raises InvalidInput, NoPlan (nothing is known; with
    `strict`, nothing exact), NothingFits, DeviceError and RegistryError.
    """
    _check(options)
    budget_bytes, workload = bytes_of(vram), workload_of([(width, height)], [batch_size])
    try:
        answer = find_plan(model, budget_bytes, workload, options)
    except NoPlan:
        note_miss(model, budget_bytes, workload, options)
        raise
    answer.note_fetch()
    if answer.answer.retune_wanted:
        note_miss(model, budget_bytes, workload, options)
    return answer


def note_miss(
    model: str, budget_bytes: int, workload: Workload, options: PlanOptions
) -> int | None:
    """Make a tuning job of a question that nothing proved here answers, best effort; its number.
    Call it after the answer is out: the machine is looked at once more."""
    from tuner.misses import Question, enqueue_miss

    wanted = options.get("enqueue_on_miss")
    if wanted is False:
        return None
    settings = load_settings()
    registry, _ = _opened(settings, options.get("registry"))
    host_memory = options.get("host_memory")
    question = Question(
        model=model,
        spec=resolve_model(
            model, weights=options.get("weights", "pretrained"), revision=options.get("revision")
        ),
        workload=workload,
        budget_bytes=budget_bytes,
        host_budget_bytes=None if host_memory is None else bytes_of(host_memory),
        policy=options.get("policy", "balanced"),
        objective=options.get("objective", "latency"),
    )
    detection = detect(_gpu(options), settings=settings)
    return enqueue_miss(question, registry, detection, settings, wanted=wanted)


def find_plan(
    model: str, budget_bytes: int, workload: Workload, options: PlanOptions
) -> PlanAnswer:
    """`get_plan` without counting the fetch, so that it can be counted after the answer is out."""
    spec = resolve_model(
        model, weights=options.get("weights", "pretrained"), revision=options.get("revision")
    )
    settings = load_settings()
    registry, missing = _opened(settings, options.get("registry"))
    found = Place(
        registry=registry,
        detection=detect(_gpu(options), settings=settings),
        settings=settings,
        cached=cached_weights(spec, settings.hub_cache_dir),
        notes=missing,
    )
    return answer_at(found, spec, budget_bytes, workload, options, asked_as=model)


@dataclass(frozen=True)
class Place:
    """Where a plan shall run and what is known there. `cached` is what its hub cache holds of the
    model; `notes` go with the answer."""

    registry: Registry | None
    detection: Detection
    settings: Settings
    cached: CachedWeights | None = None
    notes: tuple[str, ...] = ()


def answer_at(
    place: Place,
    spec: ModelSpec,
    budget_bytes: int,
    workload: Workload,
    options: PlanOptions,
    *,
    asked_as: str,
) -> PlanAnswer:
    """`find_plan` for a place that is known already, this machine or another. Raises as it does."""
    registry, detection = place.registry, place.detection
    inventory = known_inventory(registry, spec)
    if inventory is not None:
        require_factor(workload.shapes, inventory.resolution_factor, spec.ref.name)
    request = _request(spec, budget_bytes, workload, options, inventory, registry, place.cached)
    request = replace(request, asked_as=asked_as)
    foresight = None if inventory is None else Foresight(inventory, detection.environment)
    stored = tuple(_candidates(registry, request, detection))
    experience = Experience(registry, request, detection.environment) if registry else None
    answer = resolve(request, stored, detection.environment, foresight, experience)
    from_registry = () if registry is None else registry.notes
    notes = (*answer.notes, *detection.problems, *place.notes, *from_registry)
    return PlanAnswer(
        model=spec,
        workload=workload,
        detection=detection,
        answer=replace(answer, notes=notes),
        inventory=inventory,
        registry=registry,
        settings=place.settings,
    )


def bytes_of(amount: object) -> int:
    """Bytes of "24GB" or of a number of them. Raises InvalidInput."""
    if isinstance(amount, str):
        return parse_bytes(amount)
    if isinstance(amount, bool) or not isinstance(amount, int) or amount <= 0:
        raise InvalidInput(f"{amount!r} is neither a size such as '24GB' nor a number of bytes")
    return amount


def _check(options: PlanOptions) -> None:
    """A misspelt option would be ignored, and the answer would be to another question."""
    if unknown := sorted(options.keys() - PlanOptions.__annotations__.keys()):
        known = ", ".join(sorted(PlanOptions.__annotations__))
        raise InvalidInput(f"unknown option {unknown[0]!r}; known: {known}")
    gpu = options.get("gpu")
    if isinstance(gpu, bool) or not isinstance(gpu, str | int | None):
        raise InvalidInput(f"gpu {gpu!r} is neither an index, a UUID nor 'cpu'")
    for name, allowed in WORDS.items():
        value = options.get(name)
        if name in options and value not in allowed:
            raise InvalidInput(f"{name} {value!r} is not one of: {', '.join(allowed)}")


def _gpu(options: PlanOptions) -> str | None:
    gpu = options.get("gpu")
    return None if gpu is None else str(gpu)


def _opened(
    settings: Settings, given: str | Path | None
) -> tuple[Registry | None, tuple[str, ...]]:
    url = settings.registry if given is None else given
    try:
        return open_registry(url, create=False, opening=settings.opening), ()
    except RegistryMissing as error:
        return None, (error.message,)


def _request(
    spec: ModelSpec,
    budget_bytes: int,
    workload: Workload,
    options: PlanOptions,
    inventory: ModelInventory | None,
    registry: Registry | None,
    cached: CachedWeights | None,
) -> Request:
    """What lies in the hub's cache now counts, whatever a branch held when it was counted."""
    host_memory = options.get("host_memory")
    return Request(
        model=spec.ref,
        workload=workload,
        budget_bytes=budget_bytes,
        host_budget_bytes=None if host_memory is None else bytes_of(host_memory),
        policy=options.get("policy", "balanced"),
        objective=options.get("objective", "latency"),
        strict=options.get("strict", False),
        architecture=None if inventory is None else inventory.architecture,
        weights=known_weights(registry, spec) if cached is None else cached.digest,
        weights_source=None if cached is None else str(cached),
    )


def _candidates(
    registry: Registry | None, request: Request, detection: Detection
) -> Iterator[StoredRecord]:
    """Records of the same architecture, whatever they are called, and of the same name."""
    if registry is None:
        return
    device = detection.environment.hardware.device
    found = registry.candidates(model_name=request.model.name, device=device)
    yield from found
    if request.architecture is not None:
        named = {item.record.id for item in found}
        alike = registry.candidates(architecture=request.architecture, device=device)
        yield from (item for item in alike if item.record.id not in named)
