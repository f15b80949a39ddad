"""What `tuner run` does: studies from options, watched while they run, and how they ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from registry.client import open_registry
from registry.errors import Interrupted, NothingFits, RegistryMissing
from registry.record import Objective, Policy
from registry.workload import Weights, Workload
from tuner.auditing import STAGE
from tuner.cli.opening import settings_for
from tuner.cli.output import print_json, print_rich
from tuner.cli.workloads import sizes_for
from tuner.config import Settings
from tuner.inventories import known_inventory
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.report import outcomes
from tuner.report.lines import LineView
from tuner.report.live import LiveView
from tuner.report.progress import RunState
from tuner.request import DEFAULT_SEEDS, StudyOutcome, StudyRequest, default_prompts
from tuner.shapes import Size, require_factor, shapes_of
from tuner.units import format_bytes
from tuner.workplace import Device, Workplace, study_at, workplace

NOTHING_PROVED = 1
"""Exit code of a run that ended in good order and published nothing."""


@dataclass(frozen=True)
class RunOptions:
    """The options of `tuner run` by their parameter names."""

    model: str
    budget_bytes: int
    host_budget_bytes: int | None
    resolutions: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    separate: bool
    weights: Weights
    revision: str | None
    steps: int | None
    policy: Policy
    objective: Objective
    search: str
    time_limit_s: float | None
    audit: int
    audit_limit_s: float | None
    step_cache: bool
    share: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    python: Path | None
    keep_logs: bool
    gpu: str | None
    as_json: bool
    registry_url: str | None


View = LineView | LiveView


def tune(options: RunOptions) -> int:
    """Run the studies that were asked for, print how they ended, and give the exit code.

    Raises the errors of `run_study`, DeviceBusy, and Interrupted saying what is kept.
    """
    spec = resolve_model(options.model, weights=options.weights, revision=options.revision)
    requests = tuple(requests_of(options, spec))
    settings = settings_for(options.registry_url)
    refuse_a_size_that_cannot_be_made(requests, spec, settings)
    device = Device(options.gpu, python=options.python, share=options.share)
    with workplace(settings, device, command=sys.argv) as place:
        ended = _each(place, requests, options)
    return 0 if all(outcome.published for outcome in ended) else NOTHING_PROVED


def requests_of(options: RunOptions, spec: ModelSpec) -> Iterator[StudyRequest]:
    """One request for all sizes together, or with --separate one for each."""
    shapes = shapes_of(sizes_for(spec, options.resolutions), options.batch_sizes)
    groups = [(shape,) for shape in shapes] if options.separate else [shapes]
    for group in groups:
        yield StudyRequest(
            model=spec,
            workload=Workload(shapes=group),
            budget_bytes=options.budget_bytes,
            host_budget_bytes=options.host_budget_bytes,
            policy=options.policy,
            objective=options.objective,
            exhaustive=options.search == "exhaustive",
            time_limit_s=options.time_limit_s,
            steps=options.steps,
            prompts=options.prompts or default_prompts(spec),
            seeds=options.seeds or DEFAULT_SEEDS,
            share=options.share,
            keep_logs=options.keep_logs,
            audit=options.audit,
            audit_limit_s=options.audit_limit_s,
            step_cache=options.step_cache,
        )


def refuse_a_size_that_cannot_be_made(
    requests: tuple[StudyRequest, ...], spec: ModelSpec, settings: Settings
) -> None:
    """Before a busy device is: what is wrong with the question is wrong whenever it is asked.
    Raises InvalidInput; a model that was never counted is judged when it is."""
    try:
        registry = open_registry(settings.registry, create=False, opening=settings.opening)
    except RegistryMissing:
        registry = None
    known = known_inventory(registry, spec)
    if known is not None:
        for request in requests:
            require_factor(request.workload.shapes, known.resolution_factor, spec.ref.name)


def _each(
    place: Workplace, requests: tuple[StudyRequest, ...], options: RunOptions
) -> list[StudyOutcome]:
    """How the studies ended, printed also where a later one is stopped or fails: they are
    published by then. A size that does not fit keeps no other one from its study; NothingFits is
    raised after the last."""
    ended: list[StudyOutcome] = []
    too_large: dict[str, NothingFits] = {}
    try:
        for request in requests:
            try:
                ended.append(_watched(place, request, options))
            except NothingFits as error:
                too_large[request.workload.label] = error
    finally:
        if ended:
            _print(ended, options)
    if too_large:
        raise nothing_fits(too_large, of=len(requests))
    return ended


def nothing_fits(errors: Mapping[str, NothingFits], *, of: int) -> NothingFits:
    """One error for all sizes that do not fit, of so many that were asked for."""
    first = next(iter(errors.values()))
    if of == 1:
        return first
    each = "; ".join(f"{label}: {error.message}" for label, error in errors.items())
    return NothingFits(f"{len(errors)} of {of} sizes do not fit. {each}", hint=first.hint)


def _watched(place: Workplace, request: StudyRequest, options: RunOptions) -> StudyOutcome:
    view = view_of(place, request, plain=options.as_json or not sys.stderr.isatty())
    try:
        with view:
            return study_at(place, request, view)
    except (KeyboardInterrupt, Interrupted) as stop:
        raise interrupted(view.state) from stop


def view_of(place: Workplace, request: StudyRequest, *, plain: bool) -> View:
    """A live view on a terminal; elsewhere, and beside JSON, lines on standard error."""
    title = f"{request.model.ref.name} at {request.workload.label}"
    if plain:
        click.echo(f"{title}, within {format_bytes(request.budget_bytes)}", err=True)
        return LineView(lambda line: click.echo(line, err=True), place.clock.monotonic_s)
    title += f", within {format_bytes(request.budget_bytes)}"
    return LiveView(
        Console(stderr=True),
        place.clock.monotonic_s,
        title=title,
        time_limit_s=request.time_limit_s,
    )


def interrupted(state: RunState) -> Interrupted:
    """What is kept, and how to go on."""
    if state.study_id is None:
        return Interrupted("interrupted before the first trial; nothing was published")
    if state.stage is not None and state.stage.stage == STAGE:
        return Interrupted(
            f"interrupted in its audit: the answer of study {state.study_id[:12]} is published",
            hint="Run the same command again to go on with the audit.",
        )
    kept = (
        "1 finished trial is"
        if state.all_trials == 1
        else f"{state.all_trials} finished trials are"
    )
    return Interrupted(
        f"interrupted: {kept} kept in study {state.study_id[:12]}; nothing of it was published",
        hint="Run the same command again to continue.",
    )


def _print(ended: list[StudyOutcome], options: RunOptions) -> None:
    if options.as_json:
        print_json([outcomes.as_data(outcome) for outcome in ended])
        return
    for outcome in ended:
        print_rich(*outcomes.parts(outcome))
