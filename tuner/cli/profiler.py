"""What `tuner profile` does: the device taken, the plan run by a worker, the findings printed."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from registry.client import open_registry
from registry.inventory import ModelInventory
from registry.store import Registry
from tuner.cli.opening import settings_for
from tuner.cli.output import plain, print_json, print_rich
from tuner.cli.subjects import Question, predicted_baseline, recorded_baseline, subject_of
from tuner.clock import SystemClock
from tuner.counting import count_model
from tuner.detect import Detection, detect
from tuner.inventories import counted_inventory
from tuner.labels import describe
from tuner.locks import DeviceLock
from tuner.profile import StepProfile
from tuner.profiling import Profiled, Profiling, Subject
from tuner.protocol import Event, Progress
from tuner.report.profiles import difference_table, longest_table, parts_table, sentences
from tuner.runner import Runner
from tuner.workplace import emptied, refuse_a_device_in_use


@dataclass(frozen=True)
class ProfileOptions:
    """How to profile, and what to do with what is found."""

    steps: int
    baseline: bool
    trace_path: Path | None
    share: bool
    as_json: bool


def profile(asked: Question, options: ProfileOptions) -> None:
    """Profile what was asked for, keep it and print it. Raises TrialFailed and DeviceBusy."""
    settings = settings_for(asked.registry_url)
    detection = detect(asked.gpu, settings=settings)
    subject = subject_of(asked, settings, detection)
    baseline = recorded_baseline(asked, settings)
    refuse_a_device_in_use(detection, share=options.share)
    registry = open_registry(settings.registry, opening=settings.opening)
    with DeviceLock(detection.device_key, settings.locks_dir, sys.argv) as lock:
        scratch_dir = emptied(settings.scratch_dir / lock.path.stem)
        runner = Runner(sys.executable, detection, lock, scratch_dir, environ=settings.environ)
        inventory = _inventory(registry, runner, subject, detection)
        profiling = Profiling(
            runner,
            registry,
            detection.environment,
            inventory,
            scratch_dir,
            SystemClock(),
            settings.compile_cache_dir,
        )
        plans = [subject.plan]
        if options.baseline:
            plans.append(baseline or predicted_baseline(subject, inventory, detection.environment))
        made = [_watched(profiling, replace(subject, plan=plan), options.steps) for plan in plans]
    if options.trace_path is not None:
        write_trace(registry, made[0], options.trace_path)
    _print(made, inventory, options)


def _inventory(
    registry: Registry, runner: Runner, subject: Subject, detection: Detection
) -> ModelInventory:
    return counted_inventory(
        registry,
        subject.model,
        subject.workload,
        detection.environment.runtime,
        take=lambda: count_model(runner, subject.model, subject.workload),
        now=SystemClock().now(),
    )


def _watched(profiling: Profiling, subject: Subject, steps: int) -> Profiled:
    click.echo(f"profiling {describe(subject.plan)} at {subject.shape.label}", err=True)
    phases: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and event.phase not in phases:
            phases.append(event.phase)
            click.echo(f"  {event.phase}", err=True)

    return profiling.profile(subject, steps, _sentences, hear)


def _sentences(found: StepProfile) -> tuple[str, ...]:
    return tuple(sentences(found))


def write_trace(registry: Registry, made: Profiled, path: Path) -> None:
    """As it is kept where the name ends in .gz, else as plain JSON."""
    data = registry.read_artifact(made.trace)
    path.write_bytes(data if path.suffix == ".gz" else gzip.decompress(data))
    click.echo(f"wrote {path}", err=True)


def _print(made: Sequence[Profiled], inventory: ModelInventory, options: ProfileOptions) -> None:
    if options.as_json:
        print_json([as_data(item, inventory) for item in made])
        return
    for item in made:
        click.echo(f"\n{describe(item.plan, inventory)}\n")
        for sentence in sentences(item.profile):
            click.echo(sentence)
        print_rich(parts_table(item.profile), longest_table(item.profile))
        click.echo(f"Kept as study {item.study[:12]}, its trace as {item.trace.sha256[:12]}.")
    if len(made) > 1:
        print_rich(difference_table(made[0].profile, made[1].profile))


def as_data(item: Profiled, inventory: ModelInventory) -> dict[str, Any]:
    """JSON types; times are milliseconds of one step."""
    return {
        "label": describe(item.plan, inventory),
        "plan_digest": item.plan.digest,
        "plan": item.plan.model_dump(mode="json"),
        "study": item.study,
        "trace": item.trace.model_dump(mode="json"),
        "findings": list(sentences(item.profile)),
        **plain(item.profile),
    }
