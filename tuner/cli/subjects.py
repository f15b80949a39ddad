"""What `tuner profile` is asked to look at: a record's plan, a file's, or the one that
`tuner get-plan` answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from registry.client import open_registry
from registry.environment import Environment
from registry.errors import InvalidInput, InvalidPlan
from registry.inventory import ModelInventory
from registry.plan import Plan, parse_plan
from registry.record import TuningRecord
from registry.workload import Shape, Weights
from tuner.answers import PlanOptions, find_plan
from tuner.cli.workloads import workload_for
from tuner.config import Settings
from tuner.cost_model import CostModel
from tuner.detect import Detection
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.profiling import Subject
from tuner.shapes import Size
from tuner.space import baseline_plans


@dataclass(frozen=True)
class Question:
    """The options that say what to profile, by their parameter names."""

    record: str | None
    plan_path: Path | None
    model: str | None
    budget_bytes: int | None
    resolution: Size | None
    batch_size: int
    weights: Weights
    revision: str | None
    gpu: str | None
    registry_url: str | None


def subject_of(asked: Question, settings: Settings, detection: Detection) -> Subject:
    """Raises UsageError for options that do not go together, and what `get-plan` raises."""
    if asked.record is not None:
        if asked.plan_path is not None:
            raise click.UsageError("give a RECORD or --plan, not both")
        found = open_registry(settings.registry, create=False, opening=settings.opening).record(
            asked.record
        )
        return _of_record(asked, found.record)
    if asked.model is None:
        raise click.UsageError("name a RECORD, or give --model, or --plan with --model")
    spec = resolve_model(asked.model, weights=asked.weights, revision=asked.revision)
    sizes = (asked.resolution,) if asked.resolution else ()
    workload = workload_for(spec, sizes, (asked.batch_size,))
    budget_bytes = asked.budget_bytes or detection.environment.hardware.vram_bytes
    if asked.plan_path is not None:
        plan = read_plan(asked.plan_path)
    else:
        plan = find_plan(asked.model, budget_bytes, workload, _options(asked)).plan
    return Subject(spec, plan, workload, workload.shapes[0], budget_bytes)


def recorded_baseline(asked: Question, settings: Settings) -> Plan | None:
    """The baseline that a record was compared with; None where no record is asked for."""
    if asked.record is None:
        return None
    found = open_registry(settings.registry, create=False, opening=settings.opening).record(
        asked.record
    )
    return found.record.baseline_plan


def predicted_baseline(
    subject: Subject, inventory: ModelInventory, environment: Environment
) -> Plan:
    """The first placement of the unquantized model that is predicted to fit, else the smallest."""
    isa = environment.runtime.cpu_isa
    model = CostModel(inventory, environment.hardware, cpu_isa=isa)
    plans = baseline_plans(inventory, environment)
    peaks = {p: model.estimate(p, subject.workload).peak_vram_bytes for p in plans}
    fitting = [plan for plan in plans if peaks[plan] <= subject.budget_bytes]
    return fitting[0] if fitting else min(plans, key=lambda plan: peaks[plan])


def read_plan(path: Path) -> Plan:
    """A plan's own JSON, or the "plan" of an answer. Raises InvalidPlan naming the file."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidPlan(f"{path} is not JSON: {error}") from None
    return parse_plan(data["plan"] if isinstance(data, dict) and "plan" in data else data)


def _of_record(asked: Question, record: TuningRecord) -> Subject:
    budget_bytes = asked.budget_bytes or record.budget_bytes
    shape = _shape_of(record, asked.resolution)
    return Subject(model_of(record, asked.model), record.plan, record.workload, shape, budget_bytes)


def model_of(record: TuningRecord, given: str | None) -> ModelSpec:
    """A record never names a local folder's path."""
    ref = record.model
    if given is None and ref.source == "local":
        raise InvalidInput(
            f"the record is of a local folder that was called {ref.name!r}",
            hint="Say with --model where it lies.",
        )
    return resolve_model(given or ref.name, weights=ref.weights, revision=ref.revision)


def _shape_of(record: TuningRecord, size: Size | None) -> Shape:
    for shape in record.workload.shapes:
        if size is None or (shape.width, shape.height) == size:
            return shape
    width, height = size or (0, 0)
    raise InvalidInput(
        f"the record serves no {width}x{height}", hint=f"It serves: {record.workload.label}."
    )


def _options(asked: Question) -> PlanOptions:
    return PlanOptions(
        registry=asked.registry_url,
        gpu=asked.gpu,
        weights=asked.weights,
        revision=asked.revision,
    )
